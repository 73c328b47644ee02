package integration

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"testing"
	"time"
)

// TestBusyViews has a program do everything at once with a process whose memory has views of a file that the program stores
// into, while more READs of its private memory wait than the host kernel sends at once: those that do not have to wait for the
// host must not wait for those that do, or the WRITEs that these wait for are never sent.
func TestBusyViews(t *testing.T) {
	const border, size = 0x10040000, 0x40000
	program := compileC(t, "testdata/views.c")
	m := mountMemfs(t, options{memory: "32M", limit: time.Minute})
	must(t, os.WriteFile(m.path("f"), make([]byte, size), 0o644))
	c := m.process(t, "p")
	c.say(`f = CreateFile "/f" GENERIC_READ|GENERIC_WRITE`, "h = CreateFileMapping $f PAGE_READWRITE 0 0 0",
		fmt.Sprintf("VirtualAlloc %#x %#x MEM_RESERVE|MEM_COMMIT PAGE_READWRITE", border-size, size),
		fmt.Sprintf("MapViewOfFileEx $h FILE_MAP_WRITE 0 0 0 %#x", border),
		fmt.Sprintf("ReadZero %#x %#x", border-size, size))
	ms := short(5*time.Second, 2*time.Second).Milliseconds()
	args := []string{"f", ".proc/p", fmt.Sprint(border), fmt.Sprint(size), fmt.Sprint(ms)}
	t.Log(run(t, m.dir, program, args...))
	wantVerb(t, m.dir, "^ok\n$", "check")
}

// TestGrowBesideAppend has a program append to a file that a process makes longer all the time: no append is cut off.
func TestGrowBesideAppend(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M"})
	f, err := os.OpenFile(m.path("log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	must(t, err)
	defer f.Close()
	c := m.process(t, "p")
	c.say(`f = CreateFile "/log" GENERIC_READ|GENERIC_WRITE`, "b = VirtualAlloc 0 0x1000 MEM_RESERVE|MEM_COMMIT PAGE_READWRITE")
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		line := bytes.Repeat([]byte{'a'}, 100)
		for last := int64(0); ; {
			select {
			case <-quit:
				return
			default:
			}
			if _, err := f.Write(line); err != nil {
				t.Error(err)
				return
			}
			end, err := f.Seek(0, io.SeekCurrent)
			if err != nil || end < last+int64(len(line)) {
				t.Errorf("an append ends at %d, %v; the one before it at %d", end, err, last)
				return
			}
			last = end
		}
	}()
	for end := time.Now().Add(short(4*time.Second, time.Second)); time.Now().Before(end); {
		c.say("SetFilePointerEx $f 0 2", "SetFilePointerEx $f 3 1", "WriteFile $f $b 5")
		c.say("h = CreateFileMapping $f PAGE_READWRITE 0 0 0", "GetFileSizeEx $f", "CloseHandle $h")
	}
	close(quit)
	<-done
}
