package integration

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"
)

// TestBusyViews has a program do everything at once with a process whose memory has views of a file that the program stores
// into, while more READs of its private memory wait than the host kernel sends at once: those that do not have to wait for the
// host must not wait for those that do, or the WRITEs that these wait for are never sent.
func TestBusyViews(t *testing.T) {
	program := compileC(t, "testdata/views.c")
	for what, roles := range map[string]string{"everything": "012345", "lines": "025"} {
		t.Run(what, func(t *testing.T) { busyViews(t, program, roles, short(4*time.Second, time.Second)) })
	}
}

func busyViews(t *testing.T, program, roles string, length time.Duration) {
	const border, size = 0x10040000, 0x40000
	m := mountMemfs(t, options{memory: "32M", limit: time.Minute + 2*length})
	must(t, os.WriteFile(m.path("f"), make([]byte, size), 0o644))
	c := m.process(t, "p")
	c.say(`f = CreateFile "/f" GENERIC_READ|GENERIC_WRITE`, "h = CreateFileMapping $f PAGE_READWRITE 0 0 0",
		fmt.Sprintf("VirtualAlloc %#x %#x MEM_RESERVE|MEM_COMMIT PAGE_READWRITE", border-size, size),
		fmt.Sprintf("MapViewOfFileEx $h FILE_MAP_WRITE 0 0 0 %#x", border),
		fmt.Sprintf("ReadZero %#x %#x", border-size, size))
	defer m.trimLoop(time.Millisecond)()
	t.Log(run(t, m.dir, program, "f", ".proc/p", fmt.Sprint(border), fmt.Sprint(size), fmt.Sprint(length.Milliseconds()), roles))
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

// TestUserMountSizes: in a mount of a user's own as well, programs see at once what size a process has given a file, whether
// they have it open or not, and processes how long programs have made it.
func TestUserMountSizes(t *testing.T) {
	dir, memfs := userMount(t)
	if out, err := memfs("mount", "--memory=32M", dir).CombinedOutput(); err != nil {
		t.Fatalf("memfs mount: %v\n%s", err, out)
	}
	const script = `cd $0 && mkdir .proc/p && exec 3<>.proc/p/ctl || exit
		say() { echo "$1" >&3; read -u 3 reply; case $reply in OK*) ;; *) echo "$1: $reply";; esac; }
		is() { for s in $(stat -c %s file) $(stat -L -c %s /proc/self/fd/4) $(wc -c <file); do
			[ $s = $2 ] || echo "$1: a program sees $s bytes, not $2"; done
			say 'GetFileSizeEx $f'; [ $((${reply##*=})) = $2 ] || echo "$1: a process sees $reply, not $2"; }
		exec 4<>file; printf 0123456789 >&4
		say 'f = CreateFile "/file" GENERIC_READ|GENERIC_WRITE'
		is 'a write that is not sent' 10
		say 'h = CreateFileMapping $f PAGE_READWRITE 0 13398 0'
		is 'a larger section' 13398
		say 'CloseHandle $h'
		say 'b = VirtualAlloc 0 0x1000 MEM_RESERVE|MEM_COMMIT PAGE_READWRITE'
		say 'Write $b 6162'
		say 'SetFilePointerEx $f 20000 0'
		say 'WriteFile $f $b 2'
		is 'WriteFile beyond the end' 20002
		[ "$(tail -c 2 file)" = ab ] || echo 'the bytes that were written are not there'
		say 'SetFilePointerEx $f 4096 0'
		say 'SetEndOfFile $f'
		is 'SetEndOfFile' 4096
		printf more >>file
		is 'an append' 4100
		[ "$(tail -c 4 file)" = more ] || echo 'an append is not there'
		say 'CloseHandle $f'
		say 'f = CreateFile "/file" GENERIC_READ|GENERIC_WRITE 0 CREATE_ALWAYS'
		is 'CREATE_ALWAYS' 0
		rm file
		say 'CloseHandle $f'
		exec 3>&- 4>&-; rmdir .proc/p; cat .proc/check`
	sh := asNobody(exec.Command("bash", "-c", script, dir))
	if out, err := sh.CombinedOutput(); err != nil || string(out) != "ok\n" {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := memfs("umount", dir).CombinedOutput(); err != nil {
		t.Fatalf("memfs umount: %v\n%s", err, out)
	}
}
