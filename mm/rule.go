package mm

import (
	"sync"
	"time"

	"memfs/mm/pfn"
)

// Rule is how a segment's pages are to be treated. The zero value is not a rule: DefaultRule is.
type Rule struct {
	// Priority is the standby list in which its pages wait, 0–7: pages of a lower one are repurposed first (Windows
	// Internals 7 ch. 5, "Page priority and rebalancing").
	Priority uint8
	// Pinned pages stay in memory and in the working set (MSDN VirtualLock).
	Pinned bool
	// NoSwap pages stay in memory, as on a tmpfs mounted with noswap.
	NoSwap bool
	// MaxResident is how many pages may be in memory, and how many of them in the host's cache: the file's working-set limit
	// (filelimit.go). 0 is no limit, and else it is LeastResident or more. (16 TiB are as good as none.)
	MaxResident uint32
}

// Check refuses what is no rule: StatusInvalidParameter.
func (r Rule) Check() error {
	switch {
	case r.Priority >= pfn.Priorities:
		return StatusInvalidParameter
	case r.MaxResident > 0 && r.MaxResident < LeastResident:
		return refuse(StatusInvalidParameter, "a working-set limit of %s is too low: %s or more would do, or 0 for none",
			exactly(uint64(r.MaxResident)*PageSize), size(LeastResident*PageSize))
	case r.MaxResident > 0 && r.resident():
		return refuse(StatusInvalidParameter, "pages that are pinned, or not to be swapped, cannot have a working-set limit: unpin or "+
			"swap first, or lift the limit (workingset 0)")
	}
	return nil
}

// DefaultRule is what segments have that nobody gave another.
func DefaultRule() Rule { return Rule{Priority: pfn.DefaultPriority} }

// resident says that the pages must not leave memory.
func (r Rule) resident() bool { return r.Pinned || r.NoSwap }

// residency is the book of pages that must not leave memory. They may be half of all frames at most, so that everything
// else can still be paged.
type residency struct {
	mu sync.Mutex
	// +checklocks:mu
	limit uint64 // pages
	// +checklocks:mu
	pages uint64
}

// add notes n more pages, which have been promised or are there. With bounded it refuses what the limit has no room for.
func (r *residency) add(n uint64, bounded bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if bounded && r.pages+n > r.limit {
		return StatusWorkingSetQuota
	}
	r.pages += n
	return nil
}

func (r *residency) remove(n uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pages -= n
}

// setLimit changes the limit, which never falls below what is booked.
func (r *residency) setLimit(limit uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.limit = max(limit, r.pages)
}

// lower lowers the limit, unless more is booked.
func (r *residency) lower(limit uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pages > limit {
		return false
	}
	r.limit = min(r.limit, limit)
	return true
}

// residentLimit is how many pages may be kept from leaving a memory of so many frames.
func residentLimit(frames uint64) uint64 { return frames / 2 }

// room is how many more pages may be kept in memory.
func (r *residency) room() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.limit - min(r.pages, r.limit)
}

// Resident is how many pages must not leave memory, and how many may at most.
func (s *System) Resident() (pages, limit uint64) {
	s.resident.mu.Lock()
	defer s.resident.mu.Unlock()
	return s.resident.pages, s.resident.limit
}

// addPages notes that n more pages are committed.
// +checklocks:g.mu
func (g *Segment) addPages(n uint64) {
	g.pages += n
	if g.rule.resident() {
		_ = g.sys.resident.add(n, false) // admitted before
	}
}

// removePages notes that n pages are committed no more.
// +checklocks:g.mu
func (g *Segment) removePages(n uint64) {
	g.pages -= n
	if g.rule.resident() {
		g.sys.resident.remove(n)
	}
}

// admit refuses n more committed pages in a segment whose pages must stay in memory, if there is no room for them there.
func (g *Segment) admit(n uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if n > 0 && g.rule.resident() && n > g.sys.resident.room() {
		return StatusCommitmentLimit
	}
	return nil
}

// Rule is the segment's rule.
func (g *Segment) Rule() Rule {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.rule
}

// SetRule changes the rule, and has the pages that there are follow it: those that must not leave memory are read back
// first. It returns how many were. StatusWorkingSetQuota if there is no room for them in memory, StatusInPageError if one
// cannot be read; the rule is as before then. It waits for store I/O: no lock may be held.
func (g *Segment) SetRule(r Rule) (read uint64, err error) {
	if err := r.Check(); err != nil {
		return 0, err
	}
	old, err := g.exchangeRule(r, true)
	if err != nil {
		return 0, err
	}
	if read, err = g.applyRule(r); err != nil {
		_, _ = g.exchangeRule(old, false)
		_, _ = g.applyRule(old)
		return read, err
	}
	g.setLimit(uint64(r.MaxResident))
	g.sys.wakeForLimits()
	return read, nil
}

// exchangeRule makes r the rule for what comes, and books the pages that there are.
func (g *Segment) exchangeRule(r Rule, bounded bool) (old Rule, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.deleted {
		return old, StatusDeleted
	}
	old = g.rule
	switch {
	case r.resident() && !old.resident():
		if err := g.sys.resident.add(g.pages, bounded); err != nil {
			return old, err
		}
	case !r.resident() && old.resident():
		g.sys.resident.remove(g.pages)
	}
	g.rule = r
	return old, nil
}

// applyRule has every page follow the rule.
func (g *Segment) applyRule(r Rule) (read uint64, err error) {
	for key := uint64(0); ; key++ {
		g.mu.Lock()
		k, id := g.nextLeaf(key)
		g.mu.Unlock()
		if id == 0 {
			return read, nil
		}
		n, err := g.applyToView(k, r)
		read += n
		if err != nil {
			return read, err
		}
		key = k
	}
}

// applyToView has the pages of one view follow the rule. Pages may be on their way while it looks: it waits for them. Those
// that find no frame to stay in are tried again, for there is room for them: the modified page writer makes it.
func (g *Segment) applyToView(key uint64, r Rule) (read uint64, err error) {
	deadline := time.Now().Add(patience)
	for {
		wait, paged := g.tryApply(key, r)
		switch {
		case wait != nil:
			<-wait.done
			continue
		case paged == 0:
			return read, nil
		case time.Now().After(deadline):
			return read, StatusWorkingSetQuota
		}
		if err := g.uncombineView(key); err != nil && err != errNoSlot {
			return read, err
		}
		held, err := g.readView(key)
		if err != nil {
			return read, err
		}
		_, left := g.tryApply(key, r)
		held.Done()
		if left > 0 {
			g.sys.writer.kick()
			time.Sleep(time.Millisecond)
		}
		read += paged - min(left, paged)
	}
}

// readView reads all pages of a view back and pins their frames.
func (g *Segment) readView(key uint64) (*ReadSet, error) {
	first := key << viewShift
	r := reading{g: g, first: first, last: first + ViewPages - 1, set: g.newReadSet(ViewPages)}
	if err := r.do(false); err != nil {
		r.set.Done()
		return nil, err
	}
	return r.set, nil
}

// tryApply has the pages of a view that are in frames follow the rule, if none is under I/O. It returns how many are in a
// page file and must be read back for it.
func (g *Segment) tryApply(key uint64, r Rule) (wait *pageIO, paged uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	id := g.leafAt(key)
	if id == 0 {
		return nil, 0
	}
	s := g.sys
	l := s.rec.leaves.At(id)
	s.pfn.Lock()
	defer s.pfn.Unlock()
	words := s.rec.slice(l)
	for i, w := range words {
		switch w.kind() {
		case kindInIO:
			return g.ioOn(l.base + uint64(i)), 0
		case kindPaged, kindCombined:
			paged++
		}
	}
	if !r.resident() {
		paged = 0
	} else if paged > 0 {
		return nil, paged
	}
	for i, w := range words {
		if w.hasFrame() {
			g.follow(l, uint(i), w)
		}
	}
	if !r.Pinned { // what was pinned and is in no view leaves the working set
		s.trimPages(l, ^l.host)
	}
	return nil, 0
}

// follow has a page with a frame follow the segment's rule. The PFN lock is held.
// +checklocks:g.mu
// +checklocks:g.sys.pfn.mu
func (g *Segment) follow(l *leaf, i uint, w pte) {
	s, f := g.sys, w.frame()
	s.pfn.SetPriority(f, g.rule.Priority)
	switch kept := s.pfn.Info(f).Kept; {
	case g.rule.resident():
		s.freeLocation(location(s.pfn.Keep(f, g.rule.Pinned)))
		if g.rule.Pinned {
			s.rec.set(l, i, validPTE(f))
		}
	case kept:
		s.pfn.Unkeep(f)
	}
}
