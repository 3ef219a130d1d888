// A server that forgets to close its sessions: some KiB a second, given in its argument, among much more that is released.
package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

type session struct {
	user  string
	pages []int
	token [200]byte
}

var (
	sessions []*session
	sent     int
	round    = 1
)

//go:noinline
func openSession(number int) {
	s := &session{user: fmt.Sprintf("user-%d", number)}
	s.token[5] = byte(number)
	sessions = append(sessions, s)
}

//go:noinline
func renderPage() {
	var page strings.Builder
	for i := 0; i < 50; i++ {
		fmt.Fprintf(&page, "<li>item %d of many that are on this page</li>", i*round)
	}
	sent += page.Len()
}

//go:noinline
func parseRequest() {
	headers := map[string]string{}
	for i := 0; i < 20; i++ {
		headers[fmt.Sprintf("header-%d", i*round)] = strings.Repeat("x", 100)
	}
	sent += len(headers)
}

func main() {
	kib := 17.0
	if len(os.Args) > 1 {
		kib, _ = strconv.ParseFloat(os.Args[1], 64)
	}
	// What a session takes, roughly.
	rate, begun, opened := kib*1024/260, time.Now(), 0
	for {
		for i := 0; i < 2; i++ {
			renderPage()
			parseRequest()
			round++
		}
		for ; float64(opened) < time.Since(begun).Seconds()*rate; opened++ {
			openSession(opened)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
