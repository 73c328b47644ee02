package integration

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Memory that real programs and simulated processes share.

// console is a program that speaks to a process.
type console struct {
	t    *testing.T
	ctl  *os.File
	name string
}

// process starts a simulated process, which ends with the test.
func (m *mount) process(t *testing.T, name string) *console {
	t.Helper()
	must(t, os.Mkdir(m.path(".proc", name), 0o755))
	ctl, err := os.OpenFile(m.path(".proc", name, "ctl"), os.O_RDWR, 0)
	must(t, err)
	t.Cleanup(func() {
		ctl.Close()
		_ = os.Remove(m.path(".proc", name))
	})
	return &console{t: t, ctl: ctl, name: name}
}

// try says lines and returns their replies, whatever they are.
func (c *console) try(lines ...string) []string {
	c.t.Helper()
	_, _ = c.ctl.WriteString(strings.Join(lines, "\n") + "\n") // fails as the last line does
	b := make([]byte, 64<<10)
	n, err := c.ctl.Read(b)
	must(c.t, err)
	replies := strings.Split(strings.TrimSuffix(string(b[:n]), "\n"), "\n")
	if len(replies) != len(lines) {
		c.t.Fatalf("%s: %q answered by %q", c.name, lines, replies)
	}
	return replies
}

// say is try for lines that must not fail.
func (c *console) say(lines ...string) []string {
	c.t.Helper()
	replies := c.try(lines...)
	for i, r := range replies {
		if !strings.HasPrefix(r, "OK") {
			c.t.Fatalf("%s: %s: %s", c.name, lines[i], r)
		}
	}
	return replies
}

// wantReply says a line whose reply must begin in a certain way.
func (c *console) wantReply(line, want string) {
	c.t.Helper()
	if got := c.try(line)[0]; !strings.HasPrefix(got, want) {
		c.t.Errorf("%s: %s: %s, want %s", c.name, line, got, want)
	}
}

// data is the bytes in the reply to a Read.
func (c *console) data(reply string) []byte {
	c.t.Helper()
	_, text, ok := strings.Cut(reply, "data=")
	b, err := hex.DecodeString(text)
	if !ok || err != nil {
		c.t.Fatalf("%s: %q is no reply to a Read", c.name, reply)
	}
	return b
}

// read is the n bytes at an address, which may be a variable.
func (c *console) read(at string, n int) []byte {
	c.t.Helper()
	return c.data(c.say(fmt.Sprintf("Read %s %d", at, n))[0])
}

// TestRingBuffer passes messages from a C program to a simulated process through a ring buffer in a named section, while
// everything is trimmed all the time. None is lost, and none comes out of order.
func TestRingBuffer(t *testing.T) {
	ringBuffer(t, short[uint64](20000, 2000), 256, "")
}

// TestRingBufferInFile is the same with a section that the process makes over a file of the mount.
func TestRingBufferInFile(t *testing.T) {
	ringBuffer(t, short[uint64](5000, 1000), 256, "/ring.bin")
}

// ringBuffer is with a section that the producer makes or, if file is not empty, one that the consumer has made over that file.
func ringBuffer(t *testing.T, messages, slots uint64, file string) {
	program := compileC(t, "testdata/ring.c")
	m := mountMemfs(t, options{})
	c := m.process(t, "consumer")
	if file != "" {
		c.say(fmt.Sprintf("f = CreateFile %q GENERIC_READ|GENERIC_WRITE 0 CREATE_NEW", file),
			fmt.Sprintf(`s = CreateFileMapping $f PAGE_READWRITE 0 %d "Local\ring"`, 8192+slots*16), "CloseHandle $f")
	}
	producer := exec.Command(program, m.path(".proc/sections/ring"), strconv.FormatUint(messages, 10), strconv.FormatUint(slots, 10))
	producer.Stderr = os.Stderr
	out, err := producer.StdoutPipe()
	must(t, err)
	must(t, producer.Start())
	defer producer.Process.Kill()
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "mapped\n" {
		t.Fatalf("the producer says %q", line)
	}
	stop := m.trimLoop(0)
	c.say(`h = OpenFileMapping FILE_MAP_ALL_ACCESS 0 "Local\ring"`, "v = MapViewOfFile $h FILE_MAP_WRITE 0 0 0")
	batches := 0
	for got, sent := uint64(0), uint64(0); got < messages; {
		if sent == got {
			sent = binary.LittleEndian.Uint64(c.read("$v", 8))
			continue
		}
		n := min(sent-got, slots-got%slots)
		replies := c.say(
			fmt.Sprintf("Read $v+%d %d", 8192+got%slots*16, n*16),
			fmt.Sprintf("Write $v+4096 %016x", swap(got+n)),
			"Read $v 8",
		)
		for i, b := uint64(0), c.data(replies[0]); i < n; i++ {
			number, check := binary.LittleEndian.Uint64(b[i*16:]), binary.LittleEndian.Uint64(b[i*16+8:])
			if number != got || check != ^got {
				t.Fatalf("message %d of %d sent reads %d, %#x", got, sent, number, check)
			}
			got++
		}
		sent = binary.LittleEndian.Uint64(c.data(replies[2]))
		batches++
	}
	stop()
	if err := producer.Wait(); err != nil {
		t.Errorf("the producer: %v", err)
	}
	t.Logf("%d messages in %d batches", messages, batches)
	wantVerb(t, m.dir, "^ok\n$", "check")
}

// swap is a number whose digits, in order, are the bytes of n as they lie in memory.
func swap(n uint64) uint64 {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], n)
	return binary.BigEndian.Uint64(b[:])
}

// TestSharedFile: what a simulated process stores into a file that it maps, programs see in their mappings and with read(2),
// and the other way round, at once and without anybody's help.
func TestSharedFile(t *testing.T) {
	m := mountMemfs(t, options{})
	must(t, os.WriteFile(m.path("file"), make([]byte, 3*4096+100), 0o644))
	f, err := os.OpenFile(m.path("file"), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	mem, err := unix.Mmap(int(f.Fd()), 0, 4*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	defer unix.Munmap(mem)
	c := m.process(t, "p")
	c.say(`f = CreateFile "/file" GENERIC_READ|GENERIC_WRITE`, "h = CreateFileMapping $f PAGE_READWRITE 0 0 0",
		"v = MapViewOfFile $h FILE_MAP_WRITE 0 0 0")
	b := make([]byte, 1)
	for i := range byte(50) {
		at := 4096*int(i%3) + int(i)
		mem[at] = 2*i + 1 // a store in the mapping
		if got := c.read(fmt.Sprintf("$v+%d", at), 1); got[0] != 2*i+1 {
			t.Fatalf("a store of %d in a mapping reads %d in the process", 2*i+1, got[0])
		}
		c.say(fmt.Sprintf("Write $v+%d %02x", at, 2*i+2)) // one of the process
		if mem[at] != 2*i+2 {
			t.Fatalf("a store of %d in the process reads %d in a mapping", 2*i+2, mem[at])
		}
		if _, err := f.ReadAt(b, int64(at)); err != nil || b[0] != 2*i+2 {
			t.Fatalf("a store of %d in the process reads %d, %v", 2*i+2, b[0], err)
		}
		must2(t)(f.WriteAt([]byte{i}, int64(at)))
		if got := c.read(fmt.Sprintf("$v+%d", at), 1); got[0] != i {
			t.Fatalf("a write(2) of %d reads %d in the process", i, got[0])
		}
	}
	// Neighbours in one page, each written by one side only.
	for i := range 100 {
		mem[5000+i] = 'r'
		c.say(fmt.Sprintf("Write $v+%d 73", 6000+i))
	}
	for i := range 100 {
		if mem[5000+i] != 'r' || mem[6000+i] != 's' {
			t.Fatalf("byte %d of the program's reads %q, of the process's %q", i, mem[5000+i], mem[6000+i])
		}
	}
	whole := strings.Repeat("w", 4096) // a page that the host does not read before it is overwritten
	must2(t)(f.WriteAt([]byte(whole), 8192))
	if got := c.read("$v+8192", 4096); string(got) != whole {
		t.Errorf("a whole page that was written reads %.20q…", got)
	}
}

func must2(t *testing.T) func(int, error) {
	return func(_ int, err error) { t.Helper(); must(t, err) }
}

// TestSharedFileRules: sizes of files under views, names of sections and files, on both sides.
func TestSharedFileRules(t *testing.T) {
	m := mountMemfs(t, options{})
	c := m.process(t, "p")
	size := func(name string) int64 {
		t.Helper()
		st, err := os.Stat(m.path(name))
		must(t, err)
		return st.Size()
	}

	// A section that is larger than its file makes the file longer, for programs that have it open too.
	must(t, os.WriteFile(m.path("grows"), []byte("0123456789"), 0o644))
	f, err := os.OpenFile(m.path("grows"), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	c.say(`f = CreateFile "\grows" GENERIC_READ|GENERIC_WRITE`, "h = CreateFileMapping $f PAGE_READWRITE 0 0x3456 0",
		"v = MapViewOfFile $h FILE_MAP_WRITE 0 0 0", "Write $v+0x3000 61")
	if st, err := f.Stat(); err != nil || st.Size() != 0x3456 || size("grows") != 0x3456 {
		t.Errorf("the file has %d bytes, %d by name, %v; want %d", st.Size(), size("grows"), err, 0x3456)
	}
	if got := mustRead(t, m.path("grows")); len(got) != 0x3456 || string(got[:10]) != "0123456789" || got[0x3000] != 'a' {
		t.Errorf("the file reads %d bytes, %q… %q", len(got), got[:10], got[0x3000])
	}
	// What a program appends counts, even though the host has not sent it.
	must2(t)(f.WriteAt(make([]byte, 100), 0x3456))
	c.wantReply("GetFileSizeEx $f", "OK")
	if got := c.try("GetFileSizeEx $f")[0]; !strings.Contains(got, fmt.Sprint(0x3456+100)) && !strings.Contains(got, fmt.Sprintf("%#x", 0x3456+100)) {
		t.Errorf("GetFileSizeEx: %s, want %d", got, 0x3456+100)
	}

	// Below a view: an error for processes, allowed to programs. There is no page then, for either.
	c.say("SetFilePointerEx $f 0x1000 0")
	c.wantReply("SetEndOfFile $f", "ERR 1224 ")
	must(t, f.Truncate(0x1000))
	c.wantReply("Read $v 10", "OK")
	c.wantReply("Read $v+0x2000 1", "EXC 0xC0000006 ")
	c.wantReply("Write $v+0x2000 61", "EXC 0xC0000006 ")
	must(t, f.Truncate(0x3000))
	if got := c.read("$v+0x2000", 1); got[0] != 0 {
		t.Errorf("after the file was made longer again: %x", got)
	}
	c.say("UnmapViewOfFile $v", "CloseHandle $h", "SetEndOfFile $f")
	if size("grows") != 0x1000 {
		t.Errorf("SetEndOfFile has left %d bytes", size("grows"))
	}

	// A file that is mapped can be removed, and its pages stay.
	must(t, os.WriteFile(m.path("removed"), []byte("still here"), 0o644))
	c.say(`g = CreateFile "/removed" GENERIC_READ`, "h = CreateFileMapping $g PAGE_READONLY 0 0 0", "v = MapViewOfFile $h FILE_MAP_READ 0 0 0",
		"CloseHandle $g", "CloseHandle $h")
	must(t, os.Remove(m.path("removed")))
	if got := c.read("$v", 10); string(got) != "still here" {
		t.Errorf("a view of a removed file reads %q", got)
	}
	c.say("UnmapViewOfFile $v")

	// Files that processes make and remove are there, and gone, for programs that have looked before.
	if _, err := os.Stat(m.path("made")); !os.IsNotExist(err) {
		t.Fatal(err)
	}
	c.say(`f = CreateFile "/made" GENERIC_READ|GENERIC_WRITE 0 CREATE_NEW`, "CloseHandle $f")
	if st := stat(t, m.path("made")); st.Mode != unix.S_IFREG|0o644 || st.Uid != 0 {
		t.Errorf("mode %o, owner %d", st.Mode, st.Uid)
	}
	c.wantReply(`CreateFile "/made" GENERIC_READ 0 CREATE_NEW`, "ERR 80 ")
	c.say(`DeleteFile "/made"`)
	if _, err := os.Stat(m.path("made")); !os.IsNotExist(err) {
		t.Errorf("after DeleteFile: %v", err)
	}
	c.wantReply(`CreateFile "/made" GENERIC_READ`, "ERR 2 ")
	c.wantReply(`CreateFile "/none/made" GENERIC_READ`, "ERR 3 ")
}

// TestNamedSections: a section of a process is a file for programs while a handle is open, and a file of a program is a
// section for processes.
func TestNamedSections(t *testing.T) {
	m := mountMemfs(t, options{})
	c, d := m.process(t, "p"), m.process(t, "q")
	name := m.path(".proc/sections/made")
	if _, err := os.Stat(name); !os.IsNotExist(err) {
		t.Fatal(err)
	}
	c.say(`h = CreateFileMapping INVALID_HANDLE_VALUE PAGE_READWRITE 0 5000 "Local\made"`, "v = MapViewOfFile $h FILE_MAP_WRITE 0 0 0", "Write $v 6869")
	st := stat(t, name)
	if st.Size != 8192 || st.Mode != unix.S_IFREG|0o600 {
		t.Errorf("size %d, mode %o", st.Size, st.Mode)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	mem, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	defer unix.Munmap(mem)
	if string(mem[:2]) != "hi" {
		t.Errorf("the program reads %q", mem[:2])
	}
	d.say(`h = OpenFileMapping FILE_MAP_ALL_ACCESS 0 "made"`, "v = MapViewOfFile $h FILE_MAP_WRITE 0 0 0")
	controls := m.path(".proc/files/.proc/sections/made")
	for _, want := range []string{"Sections:              1", "Handles:               2", "Views:                 2", "PAGE_READWRITE"} {
		if info := string(mustRead(t, controls+"/info")); !strings.Contains(info, want) {
			t.Errorf("info says\n%s, not %s", info, want)
		}
	}
	if views := string(mustRead(t, controls+"/views")); strings.Count(views, "PAGE_READWRITE") != 3 || !strings.Contains(views, "SEC_COMMIT") {
		t.Errorf("views are\n%s", views)
	}
	mem[4096] = 'x'
	if got := d.read("$v+4096", 1); got[0] != 'x' {
		t.Errorf("another process reads %q", got)
	}
	c.say("CloseHandle $h")
	if st := stat(t, name); st.Nlink != 1 {
		t.Error("the name has gone with one of two handles")
	}
	d.say("CloseHandle $h")
	if _, err := os.Stat(name); !os.IsNotExist(err) {
		t.Errorf("the name has outlived the handles: %v", err)
	}
	c.say("Write $v+4096 79") // views, and what programs have open, go on
	if mem[4096] != 'y' {
		t.Error("the mapping is cut off")
	}

	// The other way round.
	must(t, os.WriteFile(m.path(".proc/sections/Global\\theirs"), []byte("from a program"), 0o600))
	c.wantReply(`OpenFileMapping FILE_MAP_READ 0 "theirs"`, "ERR 2 ")
	c.say(`h = OpenFileMapping FILE_MAP_ALL_ACCESS 0 "Global\theirs"`, "w = MapViewOfFile $h FILE_MAP_WRITE 0 0 0", "Write $w+5 41")
	if got := c.read("$w", 14); string(got) != "from A program" {
		t.Errorf("a process reads %q", got)
	}
	if got := mustRead(t, m.path(".proc/sections/Global\\theirs")); string(got[:14]) != "from A program" {
		t.Errorf("the file reads %q", got)
	}
	d.say(`h = CreateFileMapping INVALID_HANDLE_VALUE PAGE_READWRITE 0 0x100000 "Global\theirs"`, "w = MapViewOfFile $h FILE_MAP_WRITE 0 0 0", "Write $w 46")
	if got := c.read("$w", 4); string(got) != "From" {
		t.Errorf("it is not one section: %q", got)
	}
	// A name that a program removes is free for processes at once; who has the section open keeps it.
	must(t, os.Remove(m.path(".proc/sections/Global\\theirs")))
	c.wantReply(`OpenFileMapping FILE_MAP_READ 0 "Global\theirs"`, "ERR 2 ")
	d.say("Write $w+1 55")
	if got := c.read("$w", 4); string(got) != "FUom" {
		t.Errorf("a section that lost its name: %q", got)
	}
	c.say(`n = CreateFileMapping INVALID_HANDLE_VALUE PAGE_READWRITE 0 0x1000 "Global\theirs"`)
	c.say("CloseHandle $h")
	d.say("CloseHandle $h")
	stat(t, m.path(".proc/sections/Global\\theirs")) // the new one's name has not gone with the old one

	// An empty file is as long as the first process says.
	must(t, os.WriteFile(m.path(".proc/sections/empty"), nil, 0o600))
	c.wantReply(`OpenFileMapping FILE_MAP_READ 0 "empty"`, "ERR 1006 ")
	c.say(`e = CreateFileMapping INVALID_HANDLE_VALUE PAGE_READWRITE 0 0x3000 "empty"`)
	if st := stat(t, m.path(".proc/sections/empty")); st.Size != 0x3000 {
		t.Errorf("an empty section has become %d bytes long", st.Size)
	}

	// Others' sections are theirs.
	cmd := asNobody(exec.Command("sh", "-c", `mkdir .proc/nobody && echo 'OpenFileMapping FILE_MAP_READ 0 "empty"' > .proc/nobody/ctl`))
	cmd.Dir = m.dir
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Errorf("another user's process has opened the section: %s", out)
	}
	must(t, os.WriteFile(m.path(".proc/sections/readable"), nil, 0o644))
	must(t, os.Chmod(m.path(".proc/sections/readable"), 0o644))
	cmd = asNobody(exec.Command("sh", "-c", `echo 'CreateFileMapping INVALID_HANDLE_VALUE PAGE_READONLY 0 0x3000 "readable"' > .proc/nobody/ctl`))
	cmd.Dir = m.dir
	out, err := cmd.CombinedOutput()
	if st := stat(t, m.path(".proc/sections/readable")); err == nil || st.Size != 0 {
		t.Errorf("another user's process, which may only read the file, has made it %d bytes long: %s", st.Size, out)
	}
	must(t, os.Truncate(m.path(".proc/sections/readable"), 1<<20))
	_, before, _ := strings.Cut(string(mustRead(t, m.path(".proc/meminfo"))), "FileCommit:")
	before, _, _ = strings.Cut(before, "\n")
	cmd = asNobody(exec.Command("sh", "-c", `printf '%s\n' 'r = OpenFileMapping FILE_MAP_READ 0 "readable"' 'v = MapViewOfFile $r FILE_MAP_READ 0 0 0' \
		> .proc/nobody/ctl && grep FileCommit: .proc/meminfo && echo 'Read $v+0x5000 2' > .proc/nobody/ctl; tail -n1 .proc/nobody/ctl`))
	cmd.Dir = m.dir
	out, err = cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "data=0000") || !strings.Contains(string(out), "FileCommit:"+before+"\n") {
		t.Errorf("another user's process, which may only read the file: %s, %v; %s were promised before", out, err, before)
	}
	d.say(`r = OpenFileMapping FILE_MAP_ALL_ACCESS 0 "readable"`, "v = MapViewOfFile $r FILE_MAP_WRITE 0 0 0", "Write $v+0x5000 4142")
	if got := d.read("$v+0x5000", 2); string(got) != "AB" {
		t.Errorf("its owner's process has stored %q", got)
	}
	wantVerb(t, m.dir, "^ok\n$", "check")
}

// TestOneCopy: ten processes that map one file hold it once; what each stores into a write-copy view is its own; and all of
// it is given back when the views go.
func TestOneCopy(t *testing.T) {
	const processes, own = 10, 256 // pages that each copies: 1 MiB
	size := short(64<<20, 16<<20)
	m := mountMemfs(t, options{memory: "384M", pageFile: "512M"})
	must(t, writeZeros(m.path("library"), size))
	active := func() int64 { return int64(m.counters("meminfo").get(t, "Active")) } // kB
	records := func() int64 { return int64(m.counters("meminfo").get(t, "Records")) }
	m.ctl("trim")
	before, recordsBefore := active(), records()

	var all []*console
	view := fmt.Sprintf("v = MapViewOfFile $h FILE_MAP_READ 0 0 %d", size)
	for i := range processes {
		c := m.process(t, fmt.Sprint("p", i))
		c.say(`f = CreateFile "/library" GENERIC_READ`, "h = CreateFileMapping $f PAGE_WRITECOPY 0 0 0", view,
			fmt.Sprintf("SetProcessWorkingSetSize 0x100000 %d", 2*size), fmt.Sprintf("ReadZero $v %d", size))
		all = append(all, c)
	}
	tables := records() - recordsBefore
	t.Logf("%d processes read %d kB: Active grows by %d kB, records by %d kB", processes, size>>10, active()-before, tables)
	if grown := active() - before; grown < int64(size>>10) || grown > int64(size>>10)+tables+1024 {
		t.Errorf("Active has grown by %d kB for %d kB that %d processes read, with %d kB of records", grown, size>>10, processes, tables)
	}

	shared := active()
	for _, c := range all {
		c.say(fmt.Sprintf("c = MapViewOfFile $h FILE_MAP_COPY 0 0 %d", own*4096))
		for first := 0; first < own; first += 64 {
			var lines []string
			for page := first; page < first+64; page++ {
				lines = append(lines, fmt.Sprintf("Write $c+%d 01", page*4096))
			}
			c.say(lines...)
		}
	}
	copies := active() - shared
	t.Logf("each writes %d kB: Active grows by %d kB", own*4, copies)
	if want := int64(processes * own * 4); copies < want || copies > want+want/10 {
		t.Errorf("Active has grown by %d kB for copies of %d kB", copies, want)
	}
	if got := all[0].read("$v", 1); got[0] != 0 {
		t.Error("a store into a write-copy view is seen in another view")
	}

	for _, c := range all {
		c.say("UnmapViewOfFile $c", "UnmapViewOfFile $v", "CloseHandle $h", "CloseHandle $f")
	}
	// A process's default heap stays, and record frames come back in large pieces.
	if left := active() - before; left > 3*1024 {
		t.Errorf("%d kB are Active when the views have gone", left)
	}
	wantVerb(t, m.dir, "^ok\n$", "check")
}

// writeZeros writes a file of zeros that has pages.
func writeZeros(name string, size int) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	zeros := make([]byte, 1<<20)
	for done := 0; done < size; done += len(zeros) {
		if _, err := f.Write(zeros); err != nil {
			f.Close()
			return err
		}
	}
	return f.Close()
}

// TestSharedPressure has processes store and load, in large writes to their ctl files, in a file that programs store into as
// well, on the smallest mount: however many requests wait for the host, those that they wait for get through.
func TestSharedPressure(t *testing.T) {
	const processes, rounds, pages = 6, 20, 64
	m := mountMemfs(t, options{memory: "16M", pageFile: "64M"})
	must(t, writeZeros(m.path("file"), 1<<20))
	f, err := os.OpenFile(m.path("file"), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	mem, err := unix.Mmap(int(f.Fd()), 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	defer unix.Munmap(mem)
	var all []*console
	for i := range processes {
		c := m.process(t, fmt.Sprint("p", i))
		c.say(`f = CreateFile "/file" GENERIC_READ|GENERIC_WRITE`, "h = CreateFileMapping $f PAGE_READWRITE 0 0 0", "v = MapViewOfFile $h FILE_MAP_WRITE 0 0 0")
		all = append(all, c)
	}
	quit, stored := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stored)
		for n := byte(0); ; n++ {
			for page := range pages {
				select {
				case <-quit:
					return
				default:
				}
				mem[page*4096+4000] = n
			}
		}
	}()
	var done sync.WaitGroup
	for i, c := range all {
		done.Go(func() {
			for round := range rounds {
				var lines []string
				for page := range pages {
					lines = append(lines, fmt.Sprintf("Write $v+%d %02x", page*4096+i, round))
				}
				text := []byte(strings.Join(lines, "\n") + "\n")
				if !within(time.Minute, func() bool { // too many at once is EBUSY
					_, err := c.ctl.Write(text)
					return err == nil
				}) {
					t.Errorf("process %d gets nowhere in round %d", i, round)
					return
				}
			}
		})
	}
	done.Wait()
	close(quit)
	<-stored
	for page := range pages {
		for i := range processes {
			if got := mem[page*4096+i]; got != rounds-1 {
				t.Fatalf("page %d: process %d has stored %d, the mapping reads %d", page, i, rounds-1, got)
			}
		}
	}
	wantVerb(t, m.dir, "^ok\n$", "check")
}

// TestWriteFileBehindProgram: programs have appended to files and keep them open; processes that write to the beginnings do not
// cut them off, even if as many calls as may wait for the host at once are under way.
func TestWriteFileBehindProgram(t *testing.T) {
	m := mountMemfs(t, options{memory: "16M"})
	var all sync.WaitGroup
	for i := range 8 {
		c := m.process(t, fmt.Sprint("p", i))
		c.say("b = VirtualAlloc 0 0x1000 MEM_RESERVE|MEM_COMMIT PAGE_READWRITE", "Write $b 61626364")
		all.Go(func() {
			for n := range 25 {
				if err := m.writeBehind(c, fmt.Sprintf("log%d-%d", i, n)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
}

// writeBehind appends to a new file, has a process write to its beginning, and compares.
func (m *mount) writeBehind(c *console, name string) error {
	f, err := os.Create(m.path(name))
	if err != nil {
		return err
	}
	defer f.Close()
	const size = 10000
	lines := fmt.Sprintf("f = CreateFile \"/%s\" GENERIC_READ|GENERIC_WRITE\nSetFilePointerEx $f 2 0\nWriteFile $f $b 4\nCloseHandle $f\n", name)
	if _, err := f.Write(bytes.Repeat([]byte{'.'}, size)); err != nil {
		return err
	}
	for {
		if _, err = c.ctl.WriteString(lines); !errors.Is(err, unix.EBUSY) {
			break
		}
	}
	got, readErr := os.ReadFile(m.path(name))
	if err = errors.Join(err, readErr); err == nil && (len(got) != size || string(got[:8]) != "..abcd.." || got[size-1] != '.') {
		err = fmt.Errorf("%s has %d bytes of %d: %.10q…", name, len(got), size, got)
	}
	return err
}

// TestMemoryOfViews writes and reads views of a file through the mem of many processes, more than may wait for the host at
// once, while a program stores into the file: some are told EBUSY, and nobody hangs.
func TestMemoryOfViews(t *testing.T) {
	m := mountMemfs(t, options{memory: "16M", limit: time.Minute})
	const size, processes, view = 256 << 10, 16, 0x10000000
	must(t, os.WriteFile(m.path("f"), make([]byte, size), 0o644))
	f, err := os.OpenFile(m.path("f"), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	shared, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	defer unix.Munmap(shared)

	var quit atomic.Bool
	var all sync.WaitGroup
	var done, busy atomic.Uint64
	var mems []*os.File
	for i := range processes {
		name := fmt.Sprint("p", i)
		m.process(t, name).say(`f = CreateFile "/f" GENERIC_READ|GENERIC_WRITE`, "h = CreateFileMapping $f PAGE_READWRITE 0 0 0",
			fmt.Sprintf("MapViewOfFileEx $h FILE_MAP_WRITE 0 0 0 %#x", view))
		mem, err := os.OpenFile(m.path(".proc", name, "mem"), os.O_RDWR, 0)
		must(t, err)
		defer mem.Close()
		mems = append(mems, mem)
	}
	all.Go(func() {
		for i := 0; !quit.Load(); i += 4096 {
			shared[i%size+1]++
		}
	})
	for i, mem := range mems {
		for _, access := range []func([]byte, int64) (int, error){mem.WriteAt, mem.ReadAt} {
			all.Go(func() {
				b := make([]byte, size/4)
				for n := i; !quit.Load(); n++ {
					_, err := access(b, int64(view+n%4*len(b)))
					switch {
					case err == nil:
						done.Add(1)
					case errors.Is(err, unix.EBUSY):
						busy.Add(1)
					default:
						t.Error(err)
						return
					}
				}
			})
		}
	}
	for end := time.Now().Add(short(5*time.Second, 2*time.Second)); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		var st unix.Statfs_t
		if err := unix.Statfs(m.dir, &st); err != nil {
			t.Error(err)
		}
	}
	quit.Store(true)
	all.Wait()
	if t.Logf("%d reads and writes, %d refused", done.Load(), busy.Load()); done.Load() == 0 {
		t.Error("nothing was read or written")
	}
}
