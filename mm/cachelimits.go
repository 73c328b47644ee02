package mm

import "memfs/mm/pfn"

// CacheLimits bound the system cache's working set, in pages (Win32 SetSystemFileCacheSize).
type CacheLimits struct {
	Min  uint64 // want of frames does not take it below; 0 is a quarter of the host's share
	Max  uint64 // 0 is the host's share of the memory, which is the most in any case
	Hard bool   // the maximum holds always; else only while frames are short
}

// SystemCache is the limits in force, and how many pages there are.
func (s *System) SystemCache() (limits CacheLimits, pages uint64) {
	s.pfn.Lock()
	defer s.pfn.Unlock()
	return s.cache.bounds, s.hostPages()
}

// SetSystemCache bounds the system cache's working set, and trims it to that. It returns the pages that left.
// StatusInvalidParameter: limits that make no sense. It waits for the host: no lock may be held, and no handler of a READ or
// WRITE may call it.
func (s *System) SetSystemCache(c CacheLimits) (moved uint64, err error) {
	s.pfn.Lock()
	share := s.cache.limit
	ok := (c.Max == 0 || c.Min <= c.Max) && c.Min <= share && c.Max <= share
	if ok {
		s.cache.bounds = c
		s.noRoom()
	}
	s.pfn.Unlock()
	if !ok {
		return 0, refuse(StatusInvalidParameter, "the system cache's working set is bounded by MIN up to MAX up to the host's share, %s",
			exactly(share*PageSize))
	}
	return s.trimToLimits(true, s.stopping.Load)
}

// most is how many pages the system cache's working set may hold just now. The PFN lock is held.
func (c *systemCache) most(short bool) uint64 {
	if c.bounds.Max > 0 && (c.bounds.Hard || short) {
		return min(c.bounds.Max, c.limit)
	}
	return c.limit
}

// least is how many want of frames leaves it. The PFN lock is held.
func (c *systemCache) least() uint64 {
	if c.bounds.Min > 0 {
		return min(c.bounds.Min, c.limit)
	}
	return c.limit / 4
}

// emptySpaces takes every page out of the working sets of all processes that is not locked. It returns how many.
func (s *System) EmptySpaces() (moved uint64) {
	for _, p := range s.inTurn() {
		moved += p.Empty()
	}
	return moved
}

// EmptyPriorities is EmptyStandby for some priorities.
func (s *System) EmptyPriorities(lowest, highest int) uint64 {
	s.pfn.Lock()
	defer s.pfn.Unlock()
	return s.pfn.PurgeStandby(max(lowest, 0), min(highest, pfn.Priorities-1))
}
