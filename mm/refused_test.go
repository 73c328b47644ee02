package mm

import (
	"errors"
	"testing"
	"time"
)

// TestRefusedWritesKeepNothing: writes that are refused for want of space leave no records, so that what fits before them fits
// afterwards.
func TestRefusedWritesKeepNothing(t *testing.T) {
	s := newTestSystem(t, 400)
	g := s.NewSegment(noHost{})
	free := func() uint64 { c := s.Snapshot(); return c.CommitLimit - c.Commit }
	if err := g.Write(0, make([]byte, PageSize)); err != nil {
		t.Fatal(err)
	}
	for at := int64(1); free() > ViewPages/2; at++ {
		if err := g.Write(at*PageSize, make([]byte, PageSize)); err != nil {
			t.Fatal(err)
		}
	}
	before := free()
	data := make([]byte, ViewPages*PageSize)
	for key := range int64(5000) {
		if err := g.Write((100+key)*ViewPages*PageSize, data); !errors.Is(err, StatusCommitmentLimit) {
			t.Fatalf("write %d of more than there is: %v", key, err)
		}
	}
	if after := free(); after < before-1 {
		t.Errorf("%d pages could be had, and after writes that were refused %d", before, after)
	}
	closeFull(t, s, g)
}

// fullWithPinned is a system in which a pinned file has n bytes from off on, and others have all the rest.
func fullWithPinned(t *testing.T, off int64, n int) (s *System, g, kept *Segment) {
	t.Helper()
	s = newTestSystem(t, 400)
	g, kept = s.NewSegment(noHost{}), s.NewSegment(noHost{})
	rule := kept.Rule()
	rule.Pinned = true
	if _, err := kept.SetRule(rule); err != nil {
		t.Fatal(err)
	}
	err := kept.Write(off, make([]byte, n))
	for at := int64(0); err == nil; at++ {
		err = g.Write(at*PageSize, make([]byte, PageSize))
	}
	if !errors.Is(err, StatusCommitmentLimit) {
		t.Fatal(err)
	}
	return s, g, kept
}

// writeAtOnce writes the first view of a file, and does not wait for frames.
func writeAtOnce(t *testing.T, kept *Segment) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- kept.Write(0, make([]byte, ViewPages*PageSize)) }()
	select {
	case err := <-done:
		return err
	case <-time.After(patience / 2):
		err := <-done
		t.Errorf("it waits for frames: %v", err)
		return err
	}
}

// closeFull deletes the files of a system that was full, and checks and closes it.
func closeFull(t *testing.T, s *System, files ...*Segment) {
	t.Helper()
	for _, g := range files {
		g.Delete()
	}
	if err := errors.Join(append(s.Check(), s.Close())...); err != nil {
		t.Error(err)
	}
}

// TestRefusedWriteOfResident: a write of pages that must stay in memory is refused at once where nothing is left, and does not
// wait for frames first.
func TestRefusedWriteOfResident(t *testing.T) {
	s, g, kept := fullWithPinned(t, (ViewPages-1)*PageSize, PageSize) // it has its record
	if err := writeAtOnce(t, kept); !errors.Is(err, StatusCommitmentLimit) {
		t.Errorf("it was not refused: %v", err)
	}
	closeFull(t, s, g, kept)
}

// TestResidentOverwritten: pages that must stay in memory have their frames, and are written though no other frame is left.
func TestResidentOverwritten(t *testing.T) {
	s, g, kept := fullWithPinned(t, 0, ViewPages*PageSize)
	if err := writeAtOnce(t, kept); err != nil {
		t.Error(err)
	}
	closeFull(t, s, g, kept)
}
