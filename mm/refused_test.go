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
	g.Delete()
	if err := errors.Join(append(s.Check(), s.Close())...); err != nil {
		t.Error(err)
	}
}

// TestRefusedWriteOfResident: a write of pages that must stay in memory is refused at once where nothing is left, and does not
// wait for frames first.
func TestRefusedWriteOfResident(t *testing.T) {
	s := newTestSystem(t, 400)
	g, kept := s.NewSegment(noHost{}), s.NewSegment(noHost{})
	rule := kept.Rule()
	rule.Pinned = true
	if _, err := kept.SetRule(rule); err != nil {
		t.Fatal(err)
	}
	err := kept.Write((ViewPages-1)*PageSize, make([]byte, PageSize)) // it has its record
	for at := int64(0); err == nil; at++ {
		err = g.Write(at*PageSize, make([]byte, PageSize))
	}
	if !errors.Is(err, StatusCommitmentLimit) {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- kept.Write(0, make([]byte, ViewPages*PageSize)) }()
	select {
	case err := <-done:
		if !errors.Is(err, StatusCommitmentLimit) {
			t.Errorf("it was not refused: %v", err)
		}
	case <-time.After(patience / 2):
		t.Errorf("it waits for frames: %v", <-done)
	}
	g.Delete()
	kept.Delete()
	if err := errors.Join(append(s.Check(), s.Close())...); err != nil {
		t.Error(err)
	}
}

// TestResidentOverwritten: pages that must stay in memory have their frames, and are written though no other frame is left.
func TestResidentOverwritten(t *testing.T) {
	s := newTestSystem(t, 400)
	g, kept := s.NewSegment(noHost{}), s.NewSegment(noHost{})
	rule := kept.Rule()
	rule.Pinned = true
	if _, err := kept.SetRule(rule); err != nil {
		t.Fatal(err)
	}
	err := kept.Write(0, make([]byte, ViewPages*PageSize))
	for at := int64(0); err == nil; at++ {
		err = g.Write(at*PageSize, make([]byte, PageSize))
	}
	if !errors.Is(err, StatusCommitmentLimit) {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- kept.Write(0, make([]byte, ViewPages*PageSize)) }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience / 2):
		t.Errorf("it waits for frames: %v", <-done)
	}
	g.Delete()
	kept.Delete()
	if err := errors.Join(append(s.Check(), s.Close())...); err != nil {
		t.Error(err)
	}
}
