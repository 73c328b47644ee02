package win32

import (
	"fmt"
	"strings"
	"testing"

	"memfs/mm/process"
)

// must runs lines of which none may fail, and returns the last reply.
func must(t *testing.T, s *Session, lines ...string) (reply string) {
	t.Helper()
	for _, line := range lines {
		var errno error
		if reply, errno = execute(s, line); errno != nil {
			t.Fatalf("%s: %s", line, reply)
		}
	}
	return reply
}

func execute(s *Session, line string) (string, error) {
	reply, errno := s.Execute(line)
	if errno != 0 {
		return reply, errno
	}
	return reply, nil
}

// TestHandleTable: movable blocks of both families share 65536 handles. When they are all in use fixed blocks are still to
// be had, and the first that is freed is the next that is given.
func TestHandleTable(t *testing.T) {
	for _, arch := range []process.Arch{process.X64, process.X86} {
		s := newSession(t, process.Image{Arch: arch})
		for range 32768 {
			must(t, s, "m = GlobalAlloc GMEM_MOVEABLE|GMEM_DISCARDABLE 0", "n = LocalAlloc LMEM_MOVEABLE|LMEM_DISCARDABLE 0")
		}
		for _, call := range []string{"GlobalAlloc GMEM_MOVEABLE|GMEM_DISCARDABLE 0", "LocalAlloc LMEM_MOVEABLE 16"} {
			if reply, err := execute(s, call); err == nil || !strings.HasPrefix(reply, "ERR 8 ERROR_NOT_ENOUGH_MEMORY") {
				t.Errorf("%v: %s without a handle: %s", arch, call, reply)
			}
		}
		must(t, s, "f = GlobalAlloc GMEM_DISCARDABLE 0", "GlobalFree $f", "LocalFree $m")
		self, _ := s.peer("")
		freed, _ := s.variable(self, "m")
		if reply := must(t, s, "k = LocalAlloc LMEM_MOVEABLE 16"); reply != fmt.Sprintf("OK 0x%x", freed) {
			t.Errorf("%v: the handle after one was freed is %s, want 0x%x", arch, reply, freed)
		}
		must(t, s, "GlobalFree $k", "GlobalFree $n")
	}
}

// TestHeapRepliesSayWhy holds the replies that tell people what was found.
func TestHeapRepliesSayWhy(t *testing.T) {
	s := newSession(t, process.Image{Arch: process.X64})
	must(t, s, "p = malloc 24", "q = malloc 24", "free $p")
	for _, c := range []struct{ line, want string }{
		{"free $p", "EXC 0xC0000374 raise 0x1d000000880 (not a busy block: freed twice?)"},
		{"free $q+8", "EXC 0xC0000374 raise 0x1d0000008a8 (not the address of a block)"},
		{"~99 malloc 1", "ERR 87 ERROR_INVALID_PARAMETER (there is no thread 99)"},
		{"~$r malloc 1", "ERR 87 ERROR_INVALID_PARAMETER (there is no variable $r)"},
		{"~ malloc 1", `ERR 87 ERROR_INVALID_PARAMETER (a call is wanted, such as VirtualQuery 0x10000)`},
		{"HeapWalk 0 2", "ERR 87 ERROR_INVALID_PARAMETER (HeapWalk takes FIRST or NEXT)"},
		{"GlobalFree 0xdeadbee8", "ERR 6 ERROR_INVALID_HANDLE Result=0xdeadbee8"},
	} {
		if reply, _ := s.Execute(c.line); reply != c.want {
			t.Errorf("%s\n  got  %s\n  want %s", c.line, reply, c.want)
		}
	}
}

// TestHeapUnderPaging uses a heap several times the size of memory: every block keeps its bytes, and what is freed and
// destroyed goes back. newSession checks that nothing is left.
func TestHeapUnderPaging(t *testing.T) {
	s := newSession(t, process.Image{Arch: process.X64}) // 64 frames
	must(t, s, "h = HeapCreate 0 0 0")
	const blocks = 300
	for i := range blocks {
		must(t, s, fmt.Sprintf("b%d = HeapAlloc $h 0 %d", i, 1000+i%5*1500),
			fmt.Sprintf("Write $b%d %08x", i, i), fmt.Sprintf("Write $b%d+996 %08x", i, i))
	}
	for i := range blocks {
		for _, at := range []string{"", "+996"} {
			if reply := must(t, s, fmt.Sprintf("Read $b%d%s 4", i, at)); !strings.HasSuffix(reply, fmt.Sprintf("data=%08x", i)) {
				t.Fatalf("block %d%s: %s", i, at, reply)
			}
		}
		if i%3 == 0 {
			must(t, s, fmt.Sprintf("HeapFree $h 0 $b%d", i))
		}
	}
	if reply := must(t, s, "HeapValidate $h 0 0"); reply != "OK 0x1" {
		t.Errorf("afterwards: %s", reply)
	}
	if n := s.Machine.System().Snapshot().Counters; n.PagesOutput == 0 {
		t.Error("nothing was paged out: the test needs more pressure")
	}
	must(t, s, "HeapDestroy $h")
}
