// A server of net/http that stumbles over a nil pointer in each request, as the handlers of many do now and then:
// Go's runtime makes a panic of the SIGSEGV, and the handler recovers.
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
)

type session struct{ padding, visits int }

// stumble reads through a nil pointer, and says what came of it.
func stumble(absent *session) (said string) {
	defer func() { said = fmt.Sprint(recover()) }()
	return strconv.Itoa(absent.visits)
}

// fall does so where nobody recovers: that ends the program.
func fall(answer http.ResponseWriter, request *http.Request) {
	fallen := make(chan int)
	go func(absent *session) { fallen <- absent.visits }(nil)
	fmt.Fprint(answer, <-fallen)
}

// Its arguments are the port and the file with the page.
func main() {
	page, err := os.ReadFile(os.Args[2])
	if err != nil {
		panic(err)
	}
	http.HandleFunc("/page.txt", func(answer http.ResponseWriter, request *http.Request) {
		answer.Header().Set("X-Stumbled", stumble(nil))
		answer.Header().Set("Content-Length", strconv.Itoa(len(page)))
		answer.Write(page)
	})
	http.HandleFunc("/fall", fall)
	server := http.Server{Addr: "127.0.0.1:" + os.Args[1]}
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTERM)
	stopped := make(chan error)
	go func() {
		<-asked
		stopped <- server.Shutdown(context.Background())
	}()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		panic(err)
	}
	if err := <-stopped; err != nil {
		panic(err)
	}
	os.Exit(3)
}
