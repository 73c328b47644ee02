package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// info is one line of a file's info.
func (m *mount) info(t *testing.T, file, label string) string {
	t.Helper()
	for line := range strings.Lines(string(mustRead(t, m.path(".proc/files/"+file+"/info")))) {
		if rest, ok := strings.CutPrefix(line, label+":"); ok {
			return strings.TrimSuffix(strings.TrimSpace(rest), " pages")
		}
	}
	t.Fatalf("%s: info has no %s", file, label)
	return ""
}

// fillTwice writes and reads more than twice what memory holds.
func (m *mount) fillTwice(t *testing.T) {
	t.Helper()
	for i := range 70 {
		must(t, writeContent(m.path("filler"+string(rune('0'+i%10))+string(rune('0'+i/10))), i, 1<<20))
	}
	run(t, m.dir, "sh", "-c", "cat filler* >/dev/null; rm filler*")
}

// TestRules sets rules by the words of a ctl and by setfattr, on a file and on a directory, and sees that the pages, cp
// and the files made below follow.
func TestRules(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M", pageFile: "256M"})
	must(t, writeContent(m.path("kept"), 1, 4<<20))
	must(t, writeContent(m.path("other"), 2, 4<<20))
	m.fillTwice(t)
	if m.info(t, "kept", "Paged") == "0" {
		t.Error("nothing of the file was paged out: the test needs more pressure")
	}

	run(t, m.dir, "sh", "-c", "echo noswap > .proc/files/kept/ctl")
	if got := run(t, m.dir, "getfattr", "--only-values", "-n", "user.memfs.noswap", "kept"); got != "1" {
		t.Errorf("user.memfs.noswap is %q after the command", got)
	}
	m.fillTwice(t)
	if got := m.info(t, "kept", "Paged"); got != "0" {
		t.Errorf("of a file that is not to be swapped, %s pages are paged out", got)
	}
	if got := m.info(t, "other", "Paged"); got == "0" {
		t.Error("nothing of the other file was paged out: the test needs more pressure")
	}
	wantContent(t, m.path("kept"), 1, 4<<20)
	wantContent(t, m.path("other"), 2, 4<<20)

	run(t, m.dir, "setfattr", "-n", "user.memfs.priority", "-v", "2", "other")
	if got := m.info(t, "other", "Priority"); got != "2" {
		t.Errorf("priority is %s after setfattr", got)
	}
	run(t, m.dir, "cp", "-a", "other", "copy")
	if got := m.info(t, "copy", "Priority"); got != "2" {
		t.Errorf("priority of a copy by cp -a is %s", got)
	}
	run(t, m.dir, "setfattr", "-x", "user.memfs.priority", "other")
	if got := m.info(t, "other", "Priority"); got != "5" {
		t.Errorf("priority is %s after the attribute was removed", got)
	}
	for _, bad := range []string{"8", "", "high"} {
		if err := unix.Setxattr(m.path("other"), "user.memfs.priority", []byte(bad), 0); err != unix.EINVAL {
			t.Errorf("user.memfs.priority=%q: %v, want EINVAL", bad, err)
		}
	}

	must(t, os.MkdirAll(m.path("dir/sub"), 0o755))
	must(t, writeContent(m.path("dir/old"), 3, 1<<20))
	run(t, m.dir, "sh", "-c", "echo pin > .proc/files/dir/:ctl")
	must(t, writeContent(m.path("dir/sub/new"), 4, 1<<20))
	for _, name := range []string{"dir/old", "dir/sub/new"} {
		if got := m.info(t, name, "Pinned"); got != "yes" {
			t.Errorf("%s: pinned is %s", name, got)
		}
	}
	m.fillTwice(t)
	if got := m.info(t, "dir/old", "Active"); got != "256" {
		t.Errorf("of a pinned file of 1 MiB, %s pages are active", got)
	}
}

// TestRuleFiles: a part of a rule is a file that shows what holds and takes what shall hold, the same as the attribute.
func TestRuleFiles(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M", pageFile: "64M"})
	must(t, os.Mkdir(m.path("dir"), 0o755))
	must(t, os.WriteFile(m.path("dir/file"), block(1, 10_000), 0o644))
	controls := map[string]string{"dir/file": "", "dir": ":"} // what stands before the names
	for _, c := range []struct {
		name, usual, other, json string
		bad                      []string
	}{
		{"priority", "5", "2", `"priority":2`, []string{"8", "-1", "", "high"}},
		{"pin", "0", "1", `"pin":true`, []string{"2", "yes", ""}},
		{"protection", "PAGE_EXECUTE_READWRITE", "PAGE_READONLY", `"protection":"PAGE_READONLY"`, []string{"PAGE_GUARD", ""}},
	} {
		for real, colon := range controls {
			file := ".proc/files/" + real + "/" + colon + c.name
			if got := string(mustRead(t, m.path(file))); got != c.usual+"\n" {
				t.Errorf("%s: %q, want %s", file, got, c.usual)
			}
			run(t, m.dir, "sh", "-c", "echo "+c.other+" > "+file)
			for _, bad := range c.bad {
				if err := os.WriteFile(m.path(file), []byte(bad+"\n"), 0); !errors.Is(err, unix.EINVAL) {
					t.Errorf("%q written to %s: %v, want EINVAL", bad, file, err)
				}
			}
			if got := string(mustRead(t, m.path(file))); got != c.other+"\n" {
				t.Errorf("%s: %q, want %s", file, got, c.other)
			}
			if got := string(mustRead(t, m.path(file+".json"))); !strings.Contains(got, c.json) {
				t.Errorf("%s.json: %q, want %s", file, got, c.json)
			}
			if got := run(t, m.dir, "getfattr", "--only-values", "-n", "user.memfs."+c.name, real); got != c.other {
				t.Errorf("%s: user.memfs.%s is %q, want %s", real, c.name, got, c.other)
			}
			if err := os.WriteFile(m.path(file+".json"), []byte(c.usual+"\n"), 0); !errors.Is(err, unix.EACCES) {
				t.Errorf("%s.json written: %v, want EACCES", file, err)
			}
		}
	}
	must(t, os.WriteFile(m.path("dir/new"), block(2, 10), 0o644))
	if pinned, priority := m.info(t, "dir/new", "Pinned"), m.info(t, "dir/new", "Priority"); pinned != "yes" || priority != "2" {
		t.Errorf("what is made in the directory is pinned: %s, of priority %s", pinned, priority)
	}
}

// TestRuleRefused: what does not fit into half of memory is refused in words that help, and nothing has changed.
func TestRuleRefused(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M", pageFile: "256M"})
	must(t, writeContent(m.path("big"), 1, 24<<20))
	out, err := tryRun(m.dir, "", "sh", "-c", "exec 3<>.proc/files/big/ctl; echo pin >&3; code=$?; cat <&3; exit $code")
	if err == nil || !strings.Contains(out, "ERR ENOMEM") || !strings.Contains(out, "half of memory") {
		t.Errorf("pinning 24 MiB of 32: %q, %v", out, err)
	}
	if got := m.info(t, "big", "Pinned"); got != "no" {
		t.Errorf("pinned is %s after the refusal", got)
	}
	if _, err := unix.Getxattr(m.path("big"), "user.memfs.pin", nil); err != unix.ENODATA {
		t.Errorf("user.memfs.pin after the refusal: %v, want ENODATA", err)
	}
	wantContent(t, m.path("big"), 1, 24<<20)
}

// TestDiscard: discarded bytes are zeros for everybody, mapped or read, and their space is free again.
func TestDiscard(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M", pageFile: "64M"})
	must(t, writeContent(m.path("file"), 1, 8<<20))
	before := mustRead(t, m.path("file"))
	run(t, m.dir, "sh", "-c", "echo 'discard 1M 2M' > .proc/files/file/ctl")
	clear(before[1<<20 : 3<<20])
	wantFile(t, m.path("file"), before)
	if got := m.info(t, "file", "Committed"); got != "1536" {
		t.Errorf("%s pages are committed after 2 of 8 MiB were discarded", got)
	}
	if st := stat(t, m.path("file")); st.Blocks != 6<<20/512 || st.Size != 8<<20 {
		t.Errorf("%d blocks, size %d", st.Blocks, st.Size)
	}
	run(t, m.dir, "sh", "-c", "echo discard > .proc/files/file/ctl")
	wantFile(t, m.path("file"), make([]byte, 8<<20))
}

// TestFileWorkingSet: a file with a working-set limit has no more of its pages in memory, or in the kernel's cache, than that,
// while nobody wants the memory; other files keep theirs. The limit is inherited, copied, and refused where it makes no sense.
func TestFileWorkingSet(t *testing.T) {
	m := mountMemfs(t, options{memory: "64M", pageFile: "256M"})
	const size, limit = 12 << 20, 2 << 20
	must(t, writeContent(m.path("other"), 1, 4<<20))
	must(t, os.Mkdir(m.path("logs"), 0o755))
	run(t, m.dir, "sh", "-c", "echo 2M > .proc/files/logs/:workingset")
	must(t, os.Mkdir(m.path("logs/sub"), 0o755))
	must(t, writeContent(m.path("logs/sub/big"), 2, size))
	if got := m.info(t, "logs/sub/big", "WorkingSetMax"); got != "512" {
		t.Fatalf("a file made below has a limit of %s pages", got)
	}
	if got := run(t, m.dir, "getfattr", "--only-values", "-n", "user.memfs.workingset", "logs/sub/big"); got != "2M" {
		t.Errorf("user.memfs.workingset is %q", got)
	}
	if got := string(mustRead(t, m.path(".proc/files/logs/sub/big/workingset"))); got != "2097152\n" {
		t.Errorf("workingset: %q", got)
	}
	number := func(file, label string) int {
		n, err := strconv.Atoi(m.info(t, file, label))
		must(t, err)
		return n
	}
	inMemory := func(file string) int {
		return number(file, "Active") + number(file, "Standby") + number(file, "Modified")
	}
	bounded := func(file string) {
		t.Helper()
		if !within(20*time.Second, func() bool { return inMemory(file) <= limit/4096 && number(file, "HostCached") <= limit/4096 }) {
			t.Errorf("%s: %d pages in memory, %d in the host", file, inMemory(file), number(file, "HostCached"))
		}
	}
	bounded("logs/sub/big")
	for range 2 {
		wantContent(t, m.path("logs/sub/big"), 2, size)
		bounded("logs/sub/big")
	}
	m.check()
	if got := inMemory("other"); got != 1024 {
		t.Errorf("of another file %d pages are in memory, want all 1024", got)
	}
	if m.vmstat().get(t, "pages_limited") < (size-limit)/4096 {
		t.Error("pages_limited does not count them")
	}
	wantVerb(t, m.dir, `(?m) 5 ws=2M +RWX  logs/sub/big$`, "files")
	// A command brings what is there down at once, and says by how much.
	for file, command := range map[string]string{"other": "workingset 1M", "logs/sub/big": "workingset 0"} {
		reply := m.fileCtl(file, command)
		var trimmed, evicted int
		if _, err := fmt.Sscanf(reply, "OK trimmed=%d evicted=%d", &trimmed, &evicted); err != nil || file == "other" && trimmed+evicted == 0 {
			t.Errorf("%s: %q", command, reply)
		}
	}
	bounded("other")
	wantContent(t, m.path("other"), 1, 4<<20)
	wantContent(t, m.path("logs/sub/big"), 2, size)
	if got := inMemory("logs/sub/big"); got != size/4096 {
		t.Errorf("without a limit %d pages are in memory", got)
	}
	run(t, m.dir, "cp", "-a", "other", "copy")
	if got := m.info(t, "copy", "WorkingSetMax"); got != "256" {
		t.Errorf("a copy by cp -a has a limit of %s pages", got)
	}
	wantErrno(t, "a limit of a page", unix.Setxattr(m.path("other"), "user.memfs.workingset", []byte("4096"), 0), unix.EINVAL)
	wantErrno(t, "a limit that is no size", unix.Setxattr(m.path("other"), "user.memfs.workingset", []byte("much"), 0), unix.EINVAL)
	wantErrno(t, "pinning with a limit", os.WriteFile(m.path(".proc/files/other/pin"), []byte("1\n"), 0), unix.EINVAL)
	refused := func(command string) string {
		wantErrno(t, command, echo(m.path(".proc/files/other/ctl"), command), unix.EINVAL)
		return string(readFile(t, m.path(".proc/files/other/ctl")))
	}
	if reply := refused("pin"); !strings.Contains(reply, "lift the limit (workingset 0)") {
		t.Errorf("pinning with a limit: %q", reply)
	}
	if reply := refused("workingset 100K"); !strings.Contains(reply, "256K or more would do") {
		t.Errorf("a limit below a view: %q", reply)
	}
	if got := m.info(t, "other", "WorkingSetMax") + m.info(t, "other", "Pinned"); got != "256no" {
		t.Errorf("after refusals: %s", got)
	}
}

// TestFileWorkingSetMapped: a program that maps more of a file than its working-set limit, and stores all over it, loses nothing,
// and the limit holds when it is done.
func TestFileWorkingSetMapped(t *testing.T) {
	m := mountMemfs(t, options{memory: "64M", pageFile: "256M"})
	const pages = 3000
	must(t, os.WriteFile(m.path("file"), make([]byte, pages*4096), 0o644))
	m.fileCtl("file", "workingset 1M")
	f, err := os.OpenFile(m.path("file"), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	b, err := unix.Mmap(int(f.Fd()), 0, pages*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	r := rand.New(rand.NewPCG(1, 1))
	stored := make([]uint32, pages)
	for round := range uint32(3 * pages) {
		page := r.IntN(pages)
		at := b[page*4096+int(page%1000)*4:]
		if got := binary.LittleEndian.Uint32(at); got != stored[page] {
			t.Fatalf("page %d has %d, %d was stored", page, got, stored[page])
		}
		stored[page] = round + 1
		binary.LittleEndian.PutUint32(at, round+1)
	}
	must(t, unix.Msync(b, unix.MS_SYNC))
	must(t, unix.Munmap(b))
	if !within(20*time.Second, func() bool {
		n, err := strconv.Atoi(m.info(t, "file", "HostCached"))
		must(t, err)
		return n <= 256
	}) {
		t.Errorf("%s pages are in the host", m.info(t, "file", "HostCached"))
	}
	data := readFile(t, m.path("file"))
	for page, want := range stored {
		if got := binary.LittleEndian.Uint32(data[page*4096+page%1000*4:]); got != want {
			t.Fatalf("page %d has %d, %d was stored", page, got, want)
		}
	}
	m.check()
}
