package mm

// Holdings says what is held of somebody's pages, in pages.
type Holdings struct {
	Committed  uint64
	InMemory   uint64 // in frames, or under I/O
	Paged      uint64 // in a page file only
	Compressed uint64 // in compressed memory only
}

// Add adds what another holds.
func (h *Holdings) Add(o Holdings) {
	h.Committed += o.Committed
	h.InMemory += o.InMemory
	h.Paged += o.Paged
	h.Compressed += o.Compressed
}

// Holdings counts the segment's pages. It looks at one word a page, a view at a time.
func (g *Segment) Holdings() Holdings {
	h := Holdings{Committed: g.Pages()}
	for key, more := uint64(0), true; more; key++ {
		key, more = g.addHoldings(key, &h)
	}
	return h
}

// addHoldings counts the first view at or after key; more is false if there is none.
func (g *Segment) addHoldings(key uint64, h *Holdings) (at uint64, more bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	at, id := g.nextLeaf(key)
	if id == 0 {
		return 0, false
	}
	s := g.sys
	s.pfn.Lock()
	defer s.pfn.Unlock()
	for _, w := range s.rec.slice(s.rec.leaves.At(id)) {
		if w = s.plain(w); w.kind() == kindCombined {
			w = s.combinedWord(w.number())
		}
		switch w.kind() {
		case kindValid, kindTransition, kindInIO:
			h.InMemory++
		case kindPaged:
			if s.isCompressed(w.location()) {
				h.Compressed++
			} else {
				h.Paged++
			}
		}
	}
	return at, true
}

// Holdings counts the pages of a private memory.
func (p *Space) Holdings() Holdings { return p.seg.Holdings() }
