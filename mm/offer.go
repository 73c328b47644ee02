package mm

import "memfs/mm/pfn"

// Offered pages (Win32 OfferVirtualMemory): their bytes are worth keeping only as long as nobody wants the frames. They wait
// on a standby list though no store has them, and are not written anywhere; when such a frame is taken the page is zeros,
// and its space stays promised. Whoever touches a page takes it back.

// Offered says what became of an offer, in pages.
type Offered struct {
	Reclaimed uint64 // are kept again
	Lost      uint64 // are zeros now
}

// Offer has the segment's pages that are in frames be lost when their frames are wanted, in the turn of a standby list.
// Programs' views are unmapped first, as by Trim. Pages that are in a page file alone stay there. It returns how many may
// be lost. StatusInvalidParameter: the pages must stay in memory. It waits for the host: no lock may be held, and no handler
// of a READ or WRITE may call it.
func (g *Segment) Offer(priority uint8) (n uint64, err error) {
	if priority >= pfn.Priorities {
		return 0, StatusInvalidParameter
	}
	if g.Rule().resident() {
		return 0, refuse(StatusInvalidParameter, "pages that are pinned, or not to be swapped, cannot be offered: unpin or swap first")
	}
	if _, err := g.Trim(); err != nil {
		return 0, err
	}
	for key := uint64(0); ; key++ {
		k, offered, ok := g.offerView(key, priority)
		if !ok {
			return n, nil
		}
		key, n = k, n+offered
	}
}

// offerView is Offer for the first view at or after key.
func (g *Segment) offerView(key uint64, priority uint8) (at, n uint64, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	at, id := g.nextLeaf(key)
	if id == 0 {
		return 0, 0, false
	}
	s := g.sys
	s.pfn.Lock()
	defer s.pfn.Unlock()
	for _, w := range s.rec.slice(s.rec.leaves.At(id)) {
		if w.kind() != kindTransition {
			continue
		}
		if stale, offered := s.pfn.Offer(w.frame(), priority); offered {
			s.freeLocation(location(stale))
			n++
		}
	}
	return at, n, true
}

// Reclaim takes Offer back: pages that are still there are kept again, those that are not are zeros. It returns how many
// of each.
func (g *Segment) Reclaim() (o Offered) {
	for key := uint64(0); ; key++ {
		k, n, ok := g.reclaimView(key)
		if !ok {
			break
		}
		key, o.Reclaimed = k, o.Reclaimed+n
	}
	s := g.sys
	s.pfn.Lock()
	defer s.pfn.Unlock()
	o.Lost = s.lost[g.id]
	delete(s.lost, g.id)
	return o
}

func (g *Segment) reclaimView(key uint64) (at, n uint64, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	at, id := g.nextLeaf(key)
	if id == 0 {
		return 0, 0, false
	}
	s := g.sys
	s.pfn.Lock()
	defer s.pfn.Unlock()
	for _, w := range s.rec.slice(s.rec.leaves.At(id)) {
		if w.hasFrame() && s.pfn.Reclaim(w.frame()) {
			s.pfn.SetPriority(w.frame(), g.rule.Priority)
			n++
		}
	}
	return at, n, true
}

// lose makes an offered page, whose frame is taken, zeros. The PFN lock is held.
func (s *System) lose(l *leaf, i uint) {
	s.rec.set(l, i, committed)
	s.lost[l.seg]++
	s.n.pagesLost.Add(1)
}
