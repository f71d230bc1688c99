#include "faults.h"

#include <stdio.h>
#include <string.h>

static const struct fault *const tables[] = {
    memory_faults, instruction_faults, signal_faults, library_faults, limit_faults, cxx_faults,
};
#define TABLES (sizeof tables / sizeof tables[0])

void commit_fault(const char *name)
{
    for (unsigned long t = 0; t < TABLES; t++)
        for (const struct fault *fault = tables[t]; fault->name; fault++)
            if (strcmp(fault->name, name) == 0)
                fault->commit();
}

void list_faults(void)
{
    for (unsigned long t = 0; t < TABLES; t++)
        for (const struct fault *fault = tables[t]; fault->name; fault++)
            puts(fault->name);
}
