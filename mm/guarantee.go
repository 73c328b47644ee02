package mm

import (
	"errors"
	"fmt"

	"memfs/mm/offheap"
	"memfs/mm/pfn"
)

// Guaranteed frames are had from the host at once and locked, so that a mount that came up never finds the host without the
// least memory it works in. They are the ones with the lowest numbers, which stay when the memory shrinks.

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
	return nil
}

// isGuaranteed says whether a frame is one of those.
func (s *System) isGuaranteed(f pfn.Frame) bool { return uint64(f) <= pagesOf(s.config.Guarantee) }

// checkGuarantee refuses a memory that has not as many frames.
func (s *System) checkGuarantee(b Budget) error {
	if n := pagesOf(s.config.Guarantee); b.Frames < n {
		return refuse(StatusInvalidParameter, "memory %s is too small: %s of frames are guaranteed, and it has %s",
			exactly(b.Memory), size(n*PageSize), size(b.Frames*PageSize))
	}
	return nil
}

// lend gives the memory of a record frame to the host, though it may be a guaranteed one: what took it over lies elsewhere.
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
