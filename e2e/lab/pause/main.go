// The first process of every pod: holds its namespaces, and reaps what is left to it.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals)
	for s := range signals {
		switch s {
		case syscall.SIGCHLD:
			for pid, _ := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid > 0; {
				pid, _ = syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			}
		case syscall.SIGINT, syscall.SIGTERM:
			os.Exit(0)
		}
	}
}
