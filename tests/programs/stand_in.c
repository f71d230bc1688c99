/* Stands in the place of a program: executes the command in the file ARGV0.command, one word in a line, with its own
   arguments after it. Not a shell script, since a test suite may look at the libraries of the server that it tests. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WORDS 100

int main(int argc, char **argv)
{
    char path[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - sizeof ".command");
    if (length < 0)
        return 125;
    strcpy(path + length, ".command");
    FILE *file = fopen(path, "re");
    char **words = calloc(WORDS + argc, sizeof *words);
    size_t count = 0, room = 0;
    if (!file || !words)
        return 125;
    while (count < WORDS && getline(&words[count], &room, file) > 0) {
        words[count][strcspn(words[count], "\n")] = 0;
        room = 0;
        count++;
    }
    if (count == 0)
        return 125;
    memcpy(words + count, argv + 1, argc * sizeof *argv);
    execv(words[0], words);
    perror(words[0]);
    return 125;
}
