package integration

import (
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMemoryNotices waits with poll(2) for memory to get low, and for plenty again, and finds that the processes' memory
// resource notifications say the same.
func TestMemoryNotices(t *testing.T) {
	m := mountMemfs(t, options{noPageFile: true, memory: "32M"})
	open := func(name string) unix.PollFd {
		fd, err := unix.Open(m.path(".proc", name), unix.O_RDONLY|unix.O_NONBLOCK, 0)
		must(t, err)
		t.Cleanup(func() { unix.Close(fd) })
		return unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	}
	low, high := open("lowmemory"), open("highmemory")
	ready := func(p unix.PollFd, wait time.Duration) bool {
		fds := []unix.PollFd{p}
		for deadline := time.Now().Add(wait); ; {
			n, err := unix.Poll(fds, int(max(0, time.Until(deadline)).Milliseconds()))
			if err == unix.EINTR {
				continue
			}
			must(t, err)
			return n == 1 && fds[0].Revents&unix.POLLIN != 0
		}
	}
	must(t, os.Mkdir(m.path(".proc/demo"), 0755))
	query := func(kind string) string {
		must(t, echo(m.path(".proc/demo/ctl"), "h = CreateMemoryResourceNotification "+kind+"\nQueryMemoryResourceNotification $h"))
		answer := strings.TrimSpace(readAll(t, m.path(".proc/demo/ctl")))
		return answer[strings.LastIndex(answer, "ResourceState="):]
	}
	agree := func(wantLow, wantHigh bool) {
		t.Helper()
		state := map[bool]string{true: "ResourceState=1", false: "ResourceState=0"}
		if l, h := query("LowMemoryResourceNotification"), query("HighMemoryResourceNotification"); l != state[wantLow] || h != state[wantHigh] {
			t.Errorf("low %t, high %t, but the notifications say %s and %s", wantLow, wantHigh, l, h)
		}
	}
	if !ready(high, 10*time.Second) || ready(low, 0) {
		t.Fatal("an empty mount has no plenty of memory, or little")
	}
	agree(false, true)

	// Fill the memory while somebody waits.
	waiting := make(chan bool)
	go func() { waiting <- ready(low, 30*time.Second) }()
	for i := 0; ; i++ {
		f, err := os.OpenFile(m.path("fill"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0644)
		must(t, err)
		_, err = f.Write(make([]byte, 64<<10))
		if e := f.Sync(); err == nil {
			err = e
		}
		f.Close()
		if err != nil {
			break
		}
	}
	if !<-waiting || ready(high, 0) {
		t.Errorf("a full mount has plenty of memory, or not little; meminfo:\n%s", readAll(t, m.path(".proc/meminfo")))
	}
	agree(true, false)

	// Whoever reads the line takes it; while memory is low there is another one.
	line := make([]byte, 100)
	if n, err := unix.Read(int(low.Fd), line); err != nil || string(line[:n]) != "lowmemory\n" {
		t.Errorf("read %q, %v", line[:max(n, 0)], err)
	}
	if !ready(low, 10*time.Second) {
		t.Error("after a line was read, no other one came")
	}

	must(t, os.Remove(m.path("fill")))
	if !ready(high, 30*time.Second) || !within(10*time.Second, func() bool { return !ready(low, 0) }) {
		t.Error("after the files are gone there is no plenty, or still little")
	}
	agree(false, true)
}
