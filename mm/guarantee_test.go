package mm

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"memfs/mm/store"
)

// lockedMemory is how many pages this process has locked.
func lockedMemory(t *testing.T) (pages uint64) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if _, err := fmt.Sscanf(line, "VmLck: %d kB", &pages); err == nil {
			return pages / 4
		}
	}
	t.Fatal("the kernel does not say how much is locked")
	return 0
}

// TestSetGuarantee: the number of guaranteed frames changes both ways, passes over record frames, and is refused with nothing
// changed where the memory or the host has not got them.
func TestSetGuarantee(t *testing.T) {
	free := uint64(1 << 30)
	b := Budget{Memory: 64 << 20, Frames: 4096, HostBytes: 64 * PageSize, PageFile: 256, CommitLimit: 4096 + 256}
	s, err := NewFromBudget(b, Config{
		PageFiles: []PageFileConfig{{Name: "test", Store: store.NewMem(), Max: 256}},
		HostFree:  func() (uint64, bool) { return free, true },
	})
	mustDo(t, err)
	base := lockedMemory(t)
	const records = 40 * PageSize // they take the frames with the lowest numbers
	mustDo(t, s.ChargeRecord(records))
	s.BalanceStep()
	taken := s.Snapshot().RecordFrames
	is := func(pages, wantLocked uint64) {
		t.Helper()
		mustCheck(t, s)
		if got := lockedMemory(t) - base; s.Guaranteed() != pages || got != wantLocked || s.Snapshot().Guaranteed != pages {
			t.Errorf("%d frames are guaranteed and %d locked, want %d and %d", s.Guaranteed(), got, pages, wantLocked)
		}
	}
	change := func(pages, wantLocked, wantUnlocked uint64) {
		t.Helper()
		if locked, unlocked, err := s.SetGuarantee(pages * PageSize); err != nil || locked != wantLocked || unlocked != wantUnlocked {
			t.Errorf("min of %d pages: %d locked, %d unlocked, %v", pages, locked, unlocked, err)
		}
	}
	change(3000, 3000, 0)
	is(3000, 3000-taken)
	s.ReleaseRecord(records)
	s.BalanceStep()
	is(3000, 3000-s.Snapshot().RecordFrames)
	mustDo(t, s.ChargeRecord(records))
	s.BalanceStep()
	is(3000, 3000-s.Snapshot().RecordFrames)
	change(100, 0, 2900)
	change(100, 0, 0)

	if _, _, err := s.SetGuarantee(4097 * PageSize); !errors.Is(err, StatusInvalidParameter) || !strings.Contains(err.Error(), "more memory first") {
		t.Errorf("more than there are: %v", err)
	}
	free = 100 * PageSize
	if _, _, err := s.SetGuarantee(4096 * PageSize); !errors.Is(err, StatusWorkingSetQuota) || !strings.Contains(err.Error(), "400K are available") {
		t.Errorf("more than the host has: %v", err)
	}
	// What the host has given already is not asked for again.
	change(3000, 2900, 0)
	small := b
	small.Frames, small.CommitLimit = 2000, 2256
	if err := s.checkGuarantee(small); !errors.Is(err, StatusInvalidParameter) {
		t.Errorf("a memory without the guaranteed frames: %v", err)
	}
	change(0, 0, 3000)
	if got := lockedMemory(t); got != base {
		t.Errorf("%d pages are locked, %d at first", got, base)
	}
	s.ReleaseRecord(records)
	mustDo(t, s.Close())
}
