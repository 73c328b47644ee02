package ctl

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"memfs/mm"
)

// replayed writes a list in the given pieces, and returns the ranges that were prefetched.
func replayed(t *testing.T, pieces ...string) (ranges []string, reply string, errno syscall.Errno) {
	t.Helper()
	f := &fakeFile{size: 1 << 40}
	target := &Target{Files: func(do func(File)) uint64 { do(f); return 0 }}
	var r Replay
	for i, p := range pieces {
		if !r.Takes([]byte(p)) && i > 0 && (strings.HasPrefix(p, "#") || strings.TrimSpace(p) == "") {
			continue // nothing but a comment
		}
		if !r.Takes([]byte(p)) {
			t.Fatalf("piece %d, %q, is not taken for a list of faults", i, p)
		}
		answer, e := r.Write(target, []byte(p), false, Env{})
		reply, errno = reply+string(answer), max(errno, e)
	}
	if r.Takes(nil) {
		answer, e := r.Write(target, nil, true, Env{})
		reply, errno = reply+string(answer), max(errno, e)
	}
	return f.calls, reply, errno
}

func TestReplay(t *testing.T) {
	list := render(faultList(testFile()), false)
	for cut := strings.Index(list, faultsHead) + len(faultsHead) - 1; cut < len(list); cut++ {
		got, reply, errno := replayed(t, list[:cut+1], list[cut+1:]+" ")
		var covered [139264 / mm.PageSize]bool
		for _, call := range got {
			var off, n int
			if _, err := fmt.Sscanf(call, "Prefetch %d %d", &off, &n); err != nil || off%mm.PageSize+n%mm.PageSize != 0 {
				t.Fatalf("cut at %d: did %s", cut, call)
			}
			for page := off / mm.PageSize; page < (off+n)/mm.PageSize; page++ {
				covered[page] = true
			}
		}
		if errno != 0 || !strings.HasPrefix(reply, "OK prefetched=") || slices.Contains(covered[:], false) {
			t.Fatalf("cut at %d: %v, answered %q, %v", cut, got, reply, errno)
		}
	}
	if got, reply, errno := replayed(t, "4096 4096\n8192 10\n# no more\n\n0x10000 4K"); errno != 0 || len(reply) == 0 ||
		!slices.Equal(got, []string{"Prefetch 4096 4106", "Prefetch 65536 4096"}) {
		t.Errorf("prefetched %v, answered %q, %v", got, reply, errno)
	}
	for _, bad := range []string{"4096\n", "0 4096\n4096 x\n", "1 9223372036854775807\n", strings.Repeat("9", maxReplayLine+1)} {
		if got, reply, errno := replayed(t, bad); errno != syscall.EINVAL || len(got) > 0 || !strings.HasPrefix(reply, "ERR EINVAL ") {
			t.Errorf("%.20q: prefetched %v, answered %q, %v", bad, got, reply, errno)
		}
	}
	var r Replay
	for _, command := range []string{"", "trim\n", "# 5", "faults start 10"} {
		if r.Takes([]byte(command)) {
			t.Errorf("%q is taken for a list of faults", command)
		}
	}
}

func TestFaultCommands(t *testing.T) {
	f := &fakeFile{}
	target := &Target{Files: func(do func(File)) uint64 { do(f); return 0 }}
	reply, errno := Execute(FileVerbs, target, []byte("faults start\nfaults start 7\nfaults stop\nfaults forget\n"), Env{})
	if errno != 0 || string(reply) != "OK\nOK\nOK recorded=2\nOK\n" {
		t.Errorf("answered %q, %v", reply, errno)
	}
	if want := []string{"RecordFaults(16384)", "RecordFaults(7)", "StopFaults", "ForgetFaults"}; !slices.Equal(f.calls, want) {
		t.Errorf("did %v, want %v", f.calls, want)
	}
	for _, bad := range []string{"faults", "faults start 0", "faults start 1048577", "faults start x", "faults start 1 2", "faults stop 1"} {
		if reply, errno := Execute(FileVerbs, target, []byte(bad), Env{}); errno != syscall.EINVAL {
			t.Errorf("%s: answered %q, %v", bad, reply, errno)
		}
	}
}
