package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// oneReply checks that a reply is one line of the language's, and says whether its outcome is a failure.
func oneReply(reply string) error {
	status, rest, _ := strings.Cut(reply, " ")
	fields := strings.Fields(rest)
	switch {
	case strings.ContainsAny(reply, "\n\r\x00"):
	case status == "OK" && len(fields) > 0 && strings.HasPrefix(fields[0], "0x"):
		return nil
	case status == "ERR" && len(fields) > 1 && strings.Trim(fields[0], "0123456789") == "":
		return nil
	case status == "EXC" && len(fields) > 2 && strings.HasPrefix(fields[0], "0x"):
		return nil
	}
	return fmt.Errorf("not a reply: %.200q", reply)
}

// TestProcessNoise sends a process lines that make no sense: every one gets exactly one reply that says so, the write fails,
// and nothing has changed.
func TestProcessNoise(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M"})
	must(t, os.Mkdir(m.path(".proc/p"), 0o755))
	_, err := m.call(t, "p", "r = VirtualAlloc 0 0x4000 MEM_RESERVE|MEM_COMMIT PAGE_READWRITE", "h = HeapCreate 0 0 0",
		"b = HeapAlloc $h 0 100", "Write $r c3", "Write $b c4", "g = GlobalAlloc GHND 50", "SetLastError 5")
	must(t, err)
	state := func() string {
		t.Helper()
		replies, err := m.call(t, "p", "GetLastError", "Read $r 0x4000", "HeapSummary $h 0", "HeapValidate $h 0 0", "GlobalFlags $g", "GetProcessHeaps 9")
		must(t, err)
		for line := range strings.Lines(string(mustRead(t, m.path(".proc/p/maps")))) {
			replies = append(replies, strings.Join(strings.Fields(line)[:7], " ")) // but for what is in memory
		}
		return strings.Join(replies, "\n") + string(mustRead(t, m.path(".proc/p/heaps.json")))
	}
	before := state()
	f, err := os.OpenFile(m.path(".proc/p/ctl"), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	// send writes a line, which must fail and get one reply.
	send := func(line []byte) {
		t.Helper()
		if _, err := f.Write(line); err == nil {
			t.Errorf("%.100q: the write succeeded", line)
		}
		b := make([]byte, 64<<10)
		n, err := f.Read(b)
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		reply, found := strings.CutSuffix(string(b[:n]), "\n")
		if err := oneReply(reply); err != nil || !found || strings.HasPrefix(reply, "OK") {
			t.Errorf("%.100q: replies %.200q (%v)", line, b[:n], err)
		}
	}

	for _, line := range []string{
		"Frobnicate", "Frobnicate 1 2 3", "virtualalloc 0 1 2 3", "=", "x =", "= VirtualQuery 0", "P2:", ":", "~", "~1", "~$nobody HeapLock $h",
		"VirtualAlloc", "VirtualAlloc 0", "VirtualAlloc 0 0x1000 MEM_COMMIT", "VirtualAlloc 0 0x1000 MEM_COMMIT PAGE_READWRITE 5 6",
		"HeapAlloc", "HeapAlloc $h", "HeapAlloc $h 0", "HeapAlloc $h 0 1 2", "HeapFree $h 0", "HeapWalk $h", "HeapWalk $h SECOND",
		"GlobalLock", "GlobalAlloc 1", "GlobalReAlloc $g 1", "malloc", "malloc 1 2", "free", "_msize", "calloc 1",
		"HeapAlloc $h 0 0x10000000000000000", "HeapAlloc $h 0 99999999999999999999", "HeapAlloc $h 0 ~0", "HeapAlloc $h 0 -1",
		"HeapAlloc $h 0 0x7fffffffffffffff", "calloc ~0 ~0", "calloc 0x8000000000000000 2", "HeapCreate 0 ~0 ~0", "HeapCreate 0 ~0 1",
		"VirtualAlloc 0 ~0 MEM_COMMIT PAGE_READWRITE", "VirtualAlloc ~0 ~0 MEM_RESERVE PAGE_READWRITE", "VirtualProtect $r ~0 PAGE_NOACCESS",
		"VirtualFree $r ~0 MEM_DECOMMIT", "VirtualFree ~0 0 MEM_RELEASE", "Read $r ~0", "Read ~0 1", "Write ~0 00", "Write $r+0x3fff 0000",
		"ReadZero $r ~0", "Write $r zz", "Write $r 123", "Write $r", `Write $r "4"`, `Read "$r" 1`, "Read $$r 1", "Read $r++1 1", "Read $r|| 1",
		"Read $r+PAGE_NOTHING 1", "Read 0xg 1", "Execute", `CreateFileMapping "`, "VirtualAlloc 0 1 2 3 \"", "\x00", "\x01\x02\x03", "\xff\xfe",
		"VirtualQuery \u00fc", "HeapFree $h 0 $b+16", "HeapFree $h 0 0xdeadbee0", "GlobalFree 0xdeadbee8", "GlobalSize 0xdeadbee0",
		"Read $r 1\x01# and more", strings.Repeat("A", 60000), "Write $r " + strings.Repeat("f", 60001), strings.Repeat("$", 5000),
		"VirtualAlloc " + strings.Repeat("0 ", 20000), strings.Repeat("~", 3000) + "1", "Read " + strings.Repeat("1+", 9000) + "1 1",
	} {
		send([]byte(line + "\n"))
	}
	_, err = m.call(t, "p", "SetLastError 5")
	must(t, err)
	if after := state(); after != before {
		t.Errorf("lines that make no sense have changed the process:\n%s\nbefore\n%s", after, before)
	}

	// A megabyte of noise, in writes as a program makes them: each line of each write gets one reply.
	rnd := rand.New(rand.NewPCG(5, 5))
	noise := make([]byte, 1<<20)
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
	}
	lines := 0
	for at := 0; at < len(noise); {
		n := min(len(noise)-at, 1+rnd.IntN(8000))
		chunk := noise[at : at+n]
		at += n
		asked := 0
		for _, line := range bytes.Split(chunk, []byte("\n")) {
			if len(bytes.Trim(line, " \t\r")) > 0 && line[0] != '#' {
				asked++
			}
		}
		_, err := f.Write(chunk)
		if asked > 0 && err == nil {
			t.Errorf("%d lines of noise, and the write succeeded", asked)
		}
		b := make([]byte, 64<<10)
		k, err := f.Read(b)
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		replies := strings.Split(strings.TrimSuffix(string(b[:k]), "\n"), "\n")
		for _, reply := range replies {
			if err := oneReply(reply); asked > 0 && (err != nil || strings.HasPrefix(reply, "OK")) {
				t.Fatalf("noise: %v %q", err, reply)
			}
		}
		// Of many replies the oldest may be gone, and of a line that begins with blanks and # there is none.
		if len(replies) > asked || asked < 20 && len(replies) < asked-2 {
			t.Errorf("%d replies to %d lines of noise", len(replies), asked)
		}
		lines += asked
	}
	if lines < 2000 {
		t.Errorf("only %d lines of noise", lines)
	}
	if _, err := f.Write(noise); !errors.Is(err, unix.E2BIG) && !errors.Is(err, unix.EINVAL) {
		t.Errorf("a megabyte in one write: %v", err)
	}
	_, err = m.call(t, "p", "SetLastError 5")
	must(t, err)
	if after := state(); after != before {
		t.Errorf("noise has changed the process:\n%s\nbefore\n%s", after, before)
	}
}
