package mm

import (
	"errors"
	"fmt"

	"memfs/mm/offheap"
	"memfs/mm/pfn"
)

// Guaranteed frames are had from the host at once and locked, so that a mount that came up never finds the host without the
// least memory it works in. They are the ones with the lowest numbers, which stay when the memory shrinks. How many there are
// can be changed (SetGuarantee); whoever changes it holds the token of those who change the memory.

// guarantee locks as many frames as the configuration asks for.
func (s *System) guarantee() error {
	n := pagesOf(s.config.Guarantee)
	if n == 0 {
		return nil
	}
	if n > s.budget.Frames {
		return fmt.Errorf("guaranteed frames: %s is more than the %s of frames that %s of memory has; give less, or more memory",
			size(s.config.Guarantee), size(s.budget.Frames*PageSize), size(s.budget.Memory))
	}
	if err := offheap.Lock(s.pfn.Run(1, int(n))); err != nil {
		return errors.Join(fmt.Errorf("guaranteed frames: %s cannot be had and locked (ulimit -l): %w; give less",
			size(s.config.Guarantee), err), s.pfn.Close())
	}
	s.guaranteed.Store(n)
	return nil
}

// Guaranteed is how many frames are guaranteed.
func (s *System) Guaranteed() uint64 { return s.guaranteed.Load() }

// SetGuarantee guarantees as many frames as make up so many bytes, which may be more than before or fewer. It returns how many
// frames were locked for it, and how many were let go. StatusInvalidParameter: the memory has not as many.
// StatusWorkingSetQuota: the host cannot give them, or may not lock them. StatusBusy: another change is under way. Nothing has
// changed then. It waits for the host to give the memory: no lock may be held.
func (s *System) SetGuarantee(bytes uint64) (locked, unlocked uint64, err error) {
	if err := s.beginResize(); err != nil {
		return 0, 0, err
	}
	defer s.endResize()
	n, was, now := pagesOf(bytes), s.guaranteed.Load(), s.Budget()
	switch {
	case n > now.Frames:
		return 0, 0, refuse(StatusInvalidParameter, "min %s is more than the %s of frames that %s of memory has; give less, or more "+
			"memory first", exactly(bytes), size(now.Frames*PageSize), size(now.Memory))
	case n <= was:
		return 0, s.unguarantee(n), nil
	}
	if err := s.hostHas(bytes, pfn.Frame(was+1), n-was); err != nil {
		return 0, 0, err
	}
	for have := was; have < n; have = s.guaranteed.Load() {
		if err := s.guaranteeMore(min(guaranteeBatch, n-have)); err != nil {
			s.unguarantee(was)
			return 0, 0, refuse(StatusWorkingSetQuota, "min %s cannot be had and locked (ulimit -l): %v; give less", exactly(bytes), err)
		}
	}
	return n - was, 0, nil
}

// guaranteeBatch is how many frames are locked in one hold of the token of record frames.
const guaranteeBatch = 1024

// hostHas refuses frames that the host has not got the memory for. Those that were used have theirs already.
func (s *System) hostHas(bytes uint64, first pfn.Frame, n uint64) error {
	if s.config.HostFree == nil {
		return nil
	}
	free, known := s.config.HostFree()
	if want := (n - offheap.Resident(s.pfn.Run(first, int(n)))) * PageSize; known && want > free {
		return refuse(StatusWorkingSetQuota, "min %s cannot be had: %s more are needed, and %s are available on this machine; give less",
			exactly(bytes), size(want), size(free))
	}
	return nil
}

// guaranteeMore locks n more frames, save those that the manager's records took over: their memory is the host's.
func (s *System) guaranteeMore(n uint64) error {
	s.book.syncing.Lock()
	defer s.book.syncing.Unlock()
	first := pfn.Frame(s.guaranteed.Load() + 1)
	for _, r := range s.runsInUse(first, n) {
		if err := offheap.Lock(s.pfn.Run(r.first, r.n)); err != nil {
			_ = offheap.Unlock(s.pfn.Run(first, int(n)))
			return err
		}
	}
	s.guaranteed.Add(n)
	return nil
}

// frameRun is consecutive frames.
type frameRun struct {
	first pfn.Frame
	n     int
}

// runsInUse are those of n frames that are no record frames.
// +checklocks:s.book.syncing
func (s *System) runsInUse(first pfn.Frame, n uint64) (runs []frameRun) {
	s.pfn.Lock()
	defer s.pfn.Unlock()
	open := false
	for f := first; f < first+pfn.Frame(n); f++ {
		switch record := s.pfn.Info(f).Record; {
		case record:
			open = false
		case open:
			runs[len(runs)-1].n++
		default:
			runs, open = append(runs, frameRun{f, 1}), true
		}
	}
	return runs
}

// unguarantee lets guaranteed frames go until n are left. It returns how many went.
func (s *System) unguarantee(n uint64) (unlocked uint64) {
	s.book.syncing.Lock()
	defer s.book.syncing.Unlock()
	was := s.guaranteed.Load()
	if n >= was {
		return 0
	}
	_ = offheap.Unlock(s.pfn.Run(pfn.Frame(n+1), int(was-n)))
	s.guaranteed.Store(n)
	return was - n
}

// isGuaranteed says whether a frame is one of those.
func (s *System) isGuaranteed(f pfn.Frame) bool { return uint64(f) <= s.guaranteed.Load() }

// checkGuarantee refuses a memory that has not as many frames.
func (s *System) checkGuarantee(b Budget) error {
	if n := s.guaranteed.Load(); b.Frames < n {
		return refuse(StatusInvalidParameter, "memory %s is too small: %s of frames are guaranteed, and it has %s; min with less "+
			"lets them go", exactly(b.Memory), size(n*PageSize), size(b.Frames*PageSize))
	}
	return nil
}

// lend gives the memory of a record frame to the host, though it may be a guaranteed one: what took it over lies elsewhere.
// The token of record frames is held.
func (s *System) lend(f pfn.Frame) {
	b := s.pfn.Bytes(f)
	if s.isGuaranteed(f) {
		_ = offheap.Unlock(b)
	}
	_ = offheap.Drop(b)
}

// takeBack has a guaranteed frame's memory again.
func (s *System) takeBack(f pfn.Frame) {
	if s.isGuaranteed(f) {
		_ = offheap.Lock(s.pfn.Bytes(f)) // if it cannot be had now, at its next touch
	}
}
