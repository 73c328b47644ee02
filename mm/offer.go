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

// Offer has those of the pages first..last that are in frames be lost when their frames are wanted, in the turn of a standby
// list. Programs' views are unmapped first, as by Trim. Pages that are in a page file alone stay there. It returns how many may
// be lost. StatusInvalidParameter: the pages must stay in memory. It waits for the host: no lock may be held, and no handler
// of a READ or WRITE may call it.
func (g *Segment) Offer(first, last uint64, priority uint8) (n uint64, err error) {
	if priority >= pfn.Priorities {
		return 0, StatusInvalidParameter
	}
	if g.Rule().resident() {
		return 0, refuse(StatusInvalidParameter, "pages that are pinned, or not to be swapped, cannot be offered: unpin or swap first")
	}
	if _, err := g.trimViews(first>>viewShift, last>>viewShift); err != nil {
		return 0, err
	}
	g.eachWord(first, last, func(_ *leaf, _ uint, w pte) {
		if w.kind() == kindTransition && g.sys.offer(w, priority) {
			n++
		}
	})
	return n, nil
}

// Reclaim takes Offer of the pages first..last back: those that are still there are kept again, those that are not are zeros. It
// returns how many of each; pages that have been written since they were lost are neither.
func (g *Segment) Reclaim(first, last uint64) (o Offered) {
	g.eachWord(first, last, func(l *leaf, i uint, w pte) {
		switch {
		case w.kind() == kindZero && w&lost != 0:
			g.sys.rec.set(l, i, committed)
			o.Lost++
		case w.hasFrame() && g.sys.reclaim(w):
			g.sys.setPriority(w.frame(), g.rulePriority())
			o.Reclaimed++
		}
	})
	return o
}

// rulePriority is the rule's while the segment's lock is held, by a closure in which the analyser cannot see that.
//
// +checklocksignore
func (g *Segment) rulePriority() uint8 { return g.rule.Priority }

// offer and reclaim are called from closures that run under the PFN lock, which the analyser cannot see.
//
// +checklocksignore
func (s *System) offer(w pte, priority uint8) bool {
	stale, offered := s.pfn.Offer(w.frame(), priority)
	if offered {
		s.freeLocation(location(stale))
	}
	return offered
}

// +checklocksignore
func (s *System) reclaim(w pte) bool { return s.pfn.Reclaim(w.frame()) }

// eachWord calls f for the PTEs of the pages first..last that have records, as eachView does.
func (g *Segment) eachWord(first, last uint64, f func(l *leaf, i uint, w pte)) {
	g.eachView(first, last, func(l *leaf, mask uint64) {
		for i, w := range g.sys.rec.slice(l) {
			if mask>>i&1 != 0 {
				f(l, uint(i), w)
			}
		}
	})
}

// lose makes an offered page, whose frame is taken, zeros. The PFN lock is held.
func (s *System) lose(l *leaf, i uint) {
	s.rec.set(l, i, committed|lost)
	s.n.pagesLost.Add(1)
}
