package integration

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSystemProcess looks at the kernel side: regions that grow with what there is, closed to every access, not executable.
func TestSystemProcess(t *testing.T) {
	m := mountMemfs(t, options{})
	if ps := string(mustRead(t, m.path(".proc/ps"))); !strings.Contains(ps, "     4      0 x64   DEP (permanent)") || !strings.Contains(ps, " System") {
		t.Errorf("ps is\n%s", ps)
	}
	size := func(use string) (n string) {
		for line := range strings.Lines(string(mustRead(t, m.path(".proc/System/maps")))) {
			if strings.HasSuffix(line, " "+use+"\n") {
				f := strings.Fields(line)
				if f[2] != "MEM_COMMIT" || f[4] != "PAGE_READWRITE" {
					t.Errorf("%s: %s", use, line)
				}
				return f[1]
			}
		}
		t.Errorf("there is no %s:\n%s", use, mustRead(t, m.path(".proc/System/maps")))
		return ""
	}
	for _, use := range []string{"kernel stacks", "PFN database", "non-paged pool", "session pool"} {
		size(use)
	}
	before := size("paged pool")
	for i := range 200 {
		must(t, os.WriteFile(m.path("file"+strings.Repeat("x", i)), nil, 0o644))
	}
	if after := size("paged pool"); after == before {
		t.Errorf("200 files more, and the paged pool has %s bytes as before", after)
	}
	for line, want := range map[string]string{
		"Execute 0xfffff8a000000000":                            "EXC 0xC0000005 execute 0xfffff8a000000000",
		"Read 0xfffff8a000000000 1":                             "EXC 0xC0000005 read 0xfffff8a000000000",
		"Write 0xfffffb0000000000 00":                           "EXC 0xC0000005 write 0xfffffb0000000000",
		"VirtualAlloc 0 0x1000 MEM_COMMIT PAGE_READWRITE":       "ERR 8 ",
		"VirtualFree 0xfffff8a000000000 0 MEM_RELEASE":          "ERR 87 ",
		"VirtualProtect 0xfffff8a000000000 1 PAGE_EXECUTE_READ": "ERR 487 ",
		"VirtualQuery 0xfffff8a000000000":                       "OK ",
		"ReadProcessMemory SELF 0xfffff8a000000000 1":           "ERR 299 ",
		"WriteProcessMemory SELF 0xfffff8a000000000 00":         "ERR 998 ",
		"arch x86":                         "ERR 5 ",
		"CreateThread 0":                   "ERR 8 ",
		"VirtualLock 0xfffff8a000000000 1": "ERR 998 ",
		"VirtualAlloc 0xfffff90000000000 1 MEM_RESET PAGE_NOACCESS": "ERR 487 ",
	} {
		if replies, _ := m.call(t, "System", line); !strings.HasPrefix(replies[0], want) {
			t.Errorf("%s: %q, want %q", line, replies, want)
		}
	}
	wantErrno(t, "ending the system process", os.Remove(m.path(".proc/System")), unix.EPERM)
	wantErrno(t, "another of its name", os.Mkdir(m.path(".proc/System"), 0o755), unix.EEXIST)
	for _, name := range []string{"status", "smaps", "pagemap", "workingset", "limits", "heaps.json"} {
		mustRead(t, m.path(".proc/System", name))
	}
}
