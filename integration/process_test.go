package integration

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// call writes lines to a process's ctl and reads the replies on the same descriptor.
func (m *mount) call(t *testing.T, name string, lines ...string) (replies []string, err error) {
	t.Helper()
	f, openErr := os.OpenFile(m.path(".proc", name, "ctl"), os.O_RDWR, 0)
	must(t, openErr)
	defer f.Close()
	_, err = f.WriteString(strings.Join(lines, "\n") + "\n")
	reply := make([]byte, 64<<10)
	n, readErr := f.Read(reply)
	must(t, readErr)
	return strings.Split(strings.TrimSuffix(string(reply[:n]), "\n"), "\n"), err
}

// TestProcesses starts simulated processes, has them call, looks at them, and ends them; one is left to the unmount.
func TestProcesses(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M", pageFile: "256M"})
	before := m.counters("meminfo").get(t, "Committed_AS")
	for _, name := range []string{"p", "old@x86", "left"} {
		must(t, os.Mkdir(m.path(".proc", name), 0o755))
	}
	wantErrno(t, "a process of a name that is taken", os.Mkdir(m.path(".proc/p"), 0o755), unix.EEXIST)
	wantErrno(t, "a process named like a control file", os.Mkdir(m.path(".proc/meminfo"), 0o755), unix.EEXIST)
	wantErrno(t, "a process of no known kind", os.Mkdir(m.path(".proc/p@z80"), 0o755), unix.EINVAL)
	wantErrno(t, "a process inside one", os.Mkdir(m.path(".proc/p/q"), 0o755), unix.EPERM)
	wantErrno(t, "a file in .proc", os.WriteFile(m.path(".proc/file"), nil, 0o644), unix.EPERM)

	replies, err := m.call(t, "p", "r = VirtualAlloc 0x30000000 0x10000 MEM_RESERVE|MEM_COMMIT PAGE_READWRITE", "Write $r+8 c3c4", "Read $r+8 2")
	must(t, err)
	if len(replies) != 3 || !strings.HasPrefix(replies[0], "OK 0x30000000") || !strings.Contains(replies[2], "c3c4") {
		t.Errorf("replies are %q", replies)
	}
	replies, err = m.call(t, "p", "Execute $r+8") // the variable has outlived the descriptor
	if replies[0] != "EXC 0xC0000005 execute 0x30000008" {
		t.Errorf("executing data: %q", replies)
	}
	wantErrno(t, "a write that ends in an exception", err, unix.EFAULT)
	if replies, err = m.call(t, "p", "VirtualFree $r 1 MEM_RELEASE"); !strings.HasPrefix(replies[0], "ERR 87 ") || err == nil {
		t.Errorf("releasing with a size: %q, %v", replies, err)
	}
	if replies, _ = m.call(t, "p", "translate 0x30000008"); !strings.HasPrefix(strings.Join(replies, "\n"), "0x0000000030000008 x64\nPML4 ") {
		t.Errorf("translate: %q", replies)
	}

	for name, want := range map[string]string{"p": "DEP (permanent)\n", "old@x86": "\n"} {
		if got := string(mustRead(t, m.path(".proc", name, "dep"))); got != want {
			t.Errorf("%s: dep is %q, want %q", name, got, want)
		}
	}
	for _, c := range [][2]string{{"off", "\n"}, {"0", "\n"}, {"on", "DEP (permanent)\n"}} { // the words of `memfs dep`
		must(t, os.WriteFile(m.path(".proc/old@x86/dep"), []byte(c[0]+"\n"), 0))
		if got := string(mustRead(t, m.path(".proc/old@x86/dep"))); got != c[1] {
			t.Errorf("dep is %q after %s", got, c[0])
		}
	}
	wantErrno(t, "off after on", os.WriteFile(m.path(".proc/old@x86/dep"), []byte("off\n"), 0), unix.EACCES)
	wantErrno(t, "off for 64 bits", os.WriteFile(m.path(".proc/p/dep"), []byte("off\n"), 0), unix.EOPNOTSUPP)
	wantErrno(t, "no flags", os.WriteFile(m.path(".proc/p/dep"), []byte("perhaps\n"), 0), unix.EINVAL)
	must(t, os.WriteFile(m.path(".proc/policy/nx"), []byte("AlwaysOn\n"), 0))
	wantErrno(t, "a policy that there is not", os.WriteFile(m.path(".proc/policy/nx"), []byte("Sometimes\n"), 0), unix.EINVAL)
	must(t, os.Mkdir(m.path(".proc/new@x86"), 0o755))
	if got := string(mustRead(t, m.path(".proc/new@x86/dep"))); got != "DEP (permanent)\n" {
		t.Errorf("dep of a process started under AlwaysOn is %q", got)
	}
	if got := string(mustRead(t, m.path(".proc/left/dep"))); got != "DEP (permanent)\n" {
		t.Errorf("dep of a process started before is %q now", got)
	}
	maps := string(mustRead(t, m.path(".proc/p/maps")))
	if !strings.Contains(maps, "000030000000        65536 MEM_COMMIT  MEM_PRIVATE PAGE_READWRITE") {
		t.Errorf("maps are\n%s", maps)
	}
	if ps := string(mustRead(t, m.path(".proc/ps"))); !strings.Contains(ps, "x64   DEP (permanent)") || strings.Count(ps, "\n") != 6 {
		t.Errorf("ps is\n%s", ps)
	}

	for _, name := range []string{"p", "old@x86", "new@x86"} {
		must(t, os.Remove(m.path(".proc", name)))
	}
	wantErrno(t, "a process that has ended", os.Remove(m.path(".proc/p")), unix.ENOENT)
	wantErrno(t, "removing a folder that is no process", os.Remove(m.path(".proc/policy")), unix.EPERM)
	_, err = m.call(t, "left", "r = VirtualAlloc 0 0x100000 MEM_COMMIT PAGE_READWRITE", "Write $r 01")
	must(t, err)
	if got := m.counters("meminfo").get(t, "Committed_AS"); got < before+1024 || got > before+1024+64 {
		t.Errorf("%d kB are committed with one process of 1 MiB left, %d before", got, before)
	}
}

// TestProcessPaging has processes write more than memory holds, beside files and trims, and read all of it back.
func TestProcessPaging(t *testing.T) {
	m := mountMemfs(t, options{memory: "16M", pageFile: "256M"})
	stop := m.trimLoop(0)
	must(t, writeContent(m.path("file"), 1, 24<<20))
	const processes, pages = 3, 2000
	for p := range processes {
		name := fmt.Sprint("p", p)
		must(t, os.Mkdir(m.path(".proc", name), 0o755))
		_, err := m.call(t, name, fmt.Sprintf("r = VirtualAlloc 0 %d MEM_RESERVE|MEM_COMMIT PAGE_READWRITE", pages*4096))
		must(t, err)
		for page := 0; page < pages; page += 50 {
			var lines []string
			for i := page; i < page+50; i++ {
				lines = append(lines, fmt.Sprintf("Write $r+%d %08x", i*4096, i*7+p))
			}
			_, err := m.call(t, name, lines...)
			must(t, err)
		}
	}
	for p := range processes {
		for page := 0; page < pages; page += 50 {
			var lines []string
			for i := page; i < page+50; i++ {
				lines = append(lines, fmt.Sprintf("Read $r+%d 4", i*4096))
			}
			replies, err := m.call(t, fmt.Sprint("p", p), lines...)
			must(t, err)
			for i, reply := range replies {
				if want := fmt.Sprintf("%08x", (page+i)*7+p); !strings.Contains(reply, want) {
					t.Fatalf("process %d page %d: %q, want %s", p, page+i, reply, want)
				}
			}
		}
	}
	stop()
	wantContent(t, m.path("file"), 1, 24<<20)
	if m.vmstat().get(t, "pages_output") < pages {
		t.Error("nothing was paged out: the test needs more pressure")
	}
}

// TestProcessOwners: everybody may start a process; it is theirs, and root's.
func TestProcessOwners(t *testing.T) {
	m := mountMemfs(t, options{})
	must(t, os.Mkdir(m.path(".proc/roots"), 0o755))
	asUser := func(script string) (string, error) {
		cmd := asNobody(exec.Command("sh", "-c", script))
		cmd.Dir = m.dir
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := asUser("cd .proc && mkdir mine && echo VirtualQuery 0 > mine/ctl && cat mine/status mine/maps roots/status ps >/dev/null"); err != nil {
		t.Errorf("a user's own process: %v\n%s", err, out)
	}
	for _, forbidden := range []string{"rmdir .proc/roots", "echo VirtualQuery 0 > .proc/roots/ctl", "cat .proc/roots/maps",
		"echo AlwaysOff > .proc/policy/nx"} {
		if out, err := asUser(forbidden); err == nil {
			t.Errorf("%s: worked for another user: %s", forbidden, out)
		}
	}
	if out, err := asUser("rmdir .proc/mine"); err != nil {
		t.Errorf("ending it: %v\n%s", err, out)
	}
}

// TestProcessesOfOthersLines has two processes each start a P2 by naming it: each gets its own, of its architecture, and it ends
// with the process that started it. One that was made by mkdir is everybody's, and stays.
func TestProcessesOfOthersLines(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M", pageFile: "64M"})
	has := func(name string) bool {
		_, err := os.Stat(m.path(".proc", name))
		return err == nil
	}
	call := func(name, line, want string) {
		t.Helper()
		if replies, _ := m.call(t, name, line); len(replies) != 1 || !strings.HasPrefix(replies[0], want) {
			t.Errorf("%s: %s: %q, want %s", name, line, replies, want)
		}
	}
	long := strings.Repeat("n", 128-len("@x86,dep=on-noatl")) + "@x86,dep=on-noatl"
	for _, name := range []string{"a@x86", "b", "made@x86", long} {
		must(t, os.Mkdir(m.path(".proc", name), 0o755))
	}
	for _, name := range []string{"a@x86", "b"} {
		call(name, "VirtualAllocEx P2 0x40000000 0x1000 MEM_RESERVE|MEM_COMMIT PAGE_READWRITE", "OK 0x40000000")
	}
	call("a@x86", "P2: VirtualQuery 0x40000000", "OK 0x1c BaseAddress=0x40000000")
	call("b", "P2: VirtualQuery 0x40000000", "OK 0x30 BaseAddress=0x40000000")
	call(long, "P2: GetProcessDEPPolicy", "OK 0x1 Flags=3 Permanent=0")
	must(t, os.Remove(m.path(".proc", long)))
	wantErrno(t, "a name that is too long", os.Mkdir(m.path(".proc", "n"+long), 0o755), unix.EINVAL)
	if !has("P2") || !has("b.P2") {
		t.Error("the folders are not P2 and b.P2")
	}
	must(t, os.Remove(m.path(".proc/a@x86")))
	if has("P2") || !has("b.P2") {
		t.Error("P2 did not end with a, or b's did")
	}
	must(t, os.Remove(m.path(".proc/b.P2")))
	call("b", "P2: VirtualQuery 0x40000000", "OK 0x30 BaseAddress=0x40000000 AllocationBase=0 ") // another one
	call("b", "VirtualAllocEx made 0x40000000 0x1000 MEM_RESERVE|MEM_COMMIT PAGE_READWRITE", "OK 0x40000000")
	call("b", "ReadProcessMemory made@x86 0x40000000 1", "OK 0x1 BytesRead=1 data=00")
	call("b", "VirtualAllocEx other@x86 0 0x1000 MEM_COMMIT PAGE_READWRITE", "ERR 87 ERROR_INVALID_PARAMETER (there is no process other@x86)")
	must(t, os.Remove(m.path(".proc/b")))
	call("made@x86", "Read 0x40000000 1", "OK 0x0 data=00")
	if left := string(mustRead(t, m.path(".proc/ps"))); strings.Count(left, "\n") != 3 || !strings.Contains(left, "made") {
		t.Errorf("processes that are left:\n%s", left)
	}
}

// TestReplyToFreshReader keeps a process's ctl open for writing and reads each reply by opening it anew: a reader gets what was
// answered since the one before, and all of it if there was none.
func TestReplyToFreshReader(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M", pageFile: "64M"})
	must(t, os.Mkdir(m.path(".proc/p"), 0o755))
	w, err := os.OpenFile(m.path(".proc/p/ctl"), os.O_WRONLY, 0)
	must(t, err)
	defer w.Close()
	for _, step := range []struct{ lines, want string }{
		{"SetLastError 5\n", "OK 0x0 LastError=5\n"},
		{"GetLastError\n", "OK 0x5\n"},
		{"", "OK 0x5\n"},
		{"VirtualFree 0 0 MEM_RELEASE\n", "ERR 487 ERROR_INVALID_ADDRESS\n"},
		{"GetLastError\nSetLastError 0\n", "OK 0x1e7\nOK 0x0 LastError=0\n"},
	} {
		if step.lines != "" {
			_, _ = w.WriteString(step.lines) // of a call that fails, so does the write
		}
		if got := string(mustRead(t, m.path(".proc/p/ctl"))); got != step.want {
			t.Errorf("after %q a reader gets %q, want %q", step.lines, got, step.want)
		}
	}
	for _, line := range []string{"GetLastError\n", "SetLastError 7\n"} {
		_, err := w.WriteString(line)
		must(t, err)
	}
	if got := string(mustRead(t, m.path(".proc/p/ctl"))); got != "OK 0x0\nOK 0x0 LastError=7\n" {
		t.Errorf("after two writes a reader gets %q", got)
	}
}

// TestProcessLimits: one user cannot have all the processes there can be; root, and other users, still get theirs.
func TestProcessLimits(t *testing.T) {
	m := mountMemfs(t, options{})
	asUser := func(uid uint32, script string) string {
		cmd := exec.Command("sh", "-c", script)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		cmd.Dir = m.path(".proc")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	started := asUser(nobodyID, "n=0; while mkdir hog$n 2>/dev/null; do n=$((n+1)); done; echo $n; echo 'CreateProcess P2' > hog0/ctl 2>/dev/null; echo 'P2: VirtualQuery 0' > hog1/ctl; cat hog1/ctl")
	if !strings.HasPrefix(started, "256\n") || !strings.Contains(started, "the user has 256 already") {
		t.Errorf("one user has started %s", started)
	}
	if said := asUser(nobodyID, "mkdir more 2>&1 || true"); !strings.Contains(said, "temporarily unavailable") {
		t.Errorf("one more: %s", said)
	}
	asUser(nobodyID-1, "mkdir other && rmdir other")
	asUser(nobodyID, "rmdir hog7 && mkdir more")
	must(t, os.Mkdir(m.path(".proc/roots"), 0o755))
}

// TestProcessGroups: a process may open what its owner may by one of the supplementary groups that he has when he starts it.
func TestProcessGroups(t *testing.T) {
	const group = 12345
	m := mountMemfs(t, options{})
	for name, mode := range map[string]uint32{"shared": 0o640, "closed": 0o600, "others": 0o604} {
		must(t, os.WriteFile(m.path(name), []byte("text"), 0o600))
		must(t, os.Chown(m.path(name), 0, group))
		must(t, unix.Chmod(m.path(name), mode))
	}
	try := func(groups []uint32, name, want string) {
		t.Helper()
		cmd := exec.Command("bash", "-c", fmt.Sprintf(`cd .proc && mkdir p; exec 3<>p/ctl; echo 'CreateFile "/%s" GENERIC_READ' >&3 2>/dev/null; read -u 3 reply; echo "$reply"; rmdir p`, name))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobodyID, Gid: nobodyID, Groups: groups}}
		cmd.Dir = m.dir
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.HasPrefix(string(out), want) {
			t.Errorf("%s with groups %v: %s, %v; want %s", name, groups, out, err, want)
		}
	}
	in := []uint32{54321, group}
	try(in, "shared", "OK")
	try(in, "closed", "ERR 5 ")
	try(in, "others", "ERR 5 ") // the group's bits are what counts for it
	try([]uint32{54321}, "shared", "ERR 5 ")
	try([]uint32{54321}, "others", "OK")
}
