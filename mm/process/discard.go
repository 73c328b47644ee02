package process

// reset is MEM_RESET and MEM_RESET_UNDO: the contents may be dropped, or shall be kept after all. Busy: they are not
// intact any more.
func (p *Process) reset(first, last uint64, undo bool) error {
	c, err := p.change(nil, first, last)
	defer p.done(c)
	if err != nil {
		return err
	}
	v := p.find(first)
	switch {
	case v == nil || !v.contains(first, last) || v.system || v.physical:
		return InvalidAddress
	case v.large && v.view == nil:
		return nil // they keep their frames, and so their contents
	}
	ranges := v.committed(first, last, true)
	if v.view != nil {
		ranges = v.copiedRanges(first, last) // what others see is kept
	}
	return p.unlocked(func() error { // a neighbour's read-ahead may have to end first
		intact := true
		for _, r := range ranges {
			if undo {
				intact = p.space.UndoReset(r[0], r[1]) && intact
			} else {
				p.space.Reset(r[0], r[1])
			}
		}
		if !intact {
			return Busy
		}
		return nil
	})
}

// aligned is span for calls that want whole pages.
func (p *Process) aligned(addr, size uint64) (first, last uint64, ok bool) {
	if addr%PageSize != 0 || size%PageSize != 0 {
		return 0, 0, false
	}
	return p.span(addr, size)
}

// contents marks the pages of a range, which must be committed and private and fit, as offered or not, and then does with
// their contents what the call is for, with nobody else using them.
func (p *Process) contents(r *revocation, addr, size uint64, fit func(attr) bool, offered bool, do func(first, last uint64) error) error {
	first, last, ok := p.aligned(addr, size)
	if !ok {
		return InvalidParameter
	}
	c, err := p.change(r, first, last)
	defer p.done(c)
	if err != nil {
		return err
	}
	v := p.find(first)
	if v == nil || !v.contains(first, last) || v.kind != TypePrivate || v.system || v.large ||
		!v.all(first, last, func(a attr) bool { return a.committed && fit(a) }) {
		return InvalidParameter
	}
	v.set(first, last, func(a attr) attr { a.offered = offered; return a })
	return p.unlocked(func() error { return do(first, last) })
}

func anyPage(attr) bool       { return true }
func offeredPage(a attr) bool { return a.offered }

// Offer is OfferVirtualMemory: the contents may be dropped, and the pages cannot be touched until they are reclaimed.
// priority is 1 (very low) to 4 (normal). InvalidParameter for everything that makes no sense.
func (p *Process) Offer(addr, size uint64, priority uint32) error {
	if priority < 1 || priority > 4 {
		return InvalidParameter
	}
	p.fetch(addr, size)
	return p.revise(addr, size, false, func(r *revocation) error {
		return p.contents(r, addr, size, anyPage, true, func(first, last uint64) error {
			p.space.UnlockAll(first, last)
			// Pages leave the working set only to be dropped, which is wanted when frames are short, and not before.
			p.space.Reset(first, last)
			return nil
		})
	})
}

// Reclaim is ReclaimVirtualMemory. Busy: the contents were dropped; the pages can be used, and are zeros or what they were.
func (p *Process) Reclaim(addr, size uint64) error {
	return p.contents(nil, addr, size, offeredPage, false, func(first, last uint64) error {
		if !p.space.UndoReset(first, last) {
			return Busy
		}
		return nil
	})
}

// Discard is DiscardVirtualMemory: the contents are dropped at once; the pages stay committed.
func (p *Process) Discard(addr, size uint64) error {
	return p.revise(addr, size, true, func(r *revocation) error {
		return p.contents(r, addr, size, anyPage, false, func(first, last uint64) error {
			p.space.Discard(first, last)
			return nil
		})
	})
}

// Range is an entry of PrefetchVirtualMemory.
type Range struct{ Address, Bytes uint64 }

// prefetch reads pages back that are held.
func (p *Process) prefetch(first, last uint64) error {
	p.mu.Lock()
	var views []part
	var at []uint64
	for page := first; page <= last; {
		i := p.after(page)
		if i >= len(p.vads) || p.vads[i].first > last {
			break
		}
		page = max(page, p.vads[i].first)
		r := p.partAt(page)
		r.last = min(r.last, last)
		if r.piece != nil && !r.copied {
			views, at = append(views, r), append(at, page)
		}
		page = r.last + 1
	}
	p.mu.Unlock()
	for i, r := range views {
		if err := r.piece.shown.Prefetch(at[i], r.last); err != nil {
			return err
		}
	}
	_, err := p.space.Prefetch(first, last)
	return err
}

// Prefetch is PrefetchVirtualMemory: what the ranges have in page files comes back as far as frames are free, but not into
// the working set. Memory that is not there is passed over. InvalidParameter: no range, or an empty one.
func (p *Process) Prefetch(ranges []Range) error {
	if len(ranges) == 0 {
		return InvalidParameter
	}
	for _, r := range ranges {
		if r.Bytes == 0 {
			return InvalidParameter
		}
	}
	for _, r := range ranges {
		first, last, ok := p.span(r.Address, r.Bytes)
		if !ok {
			continue
		}
		for at := first; at <= last; {
			end, err := p.prefetchStretch(at, last)
			if err != nil {
				return win32(err)
			}
			at = end + 1
		}
	}
	return nil
}

// prefetchStretch does it for the stretch that begins at first.
func (p *Process) prefetchStretch(first, last uint64) (end uint64, err error) {
	p.mu.Lock()
	v, _ := p.stretch(first, last)
	p.mu.Unlock()
	if v != nil && v.view.waits() { // not the reading does, but others who use the pages
		leave, err := p.machine.enter()
		if err != nil {
			return last, err
		}
		defer leave()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	h, now := p.acquireStretch(first, last, false)
	defer p.release(h)
	switch {
	case p.ended:
		return last, nil
	case now != nil && now != v:
		return h.last, nil // mapped meanwhile, and nothing of it can be wanted yet
	}
	return h.last, p.unlocked(func() error { return p.prefetch(h.first, h.last) })
}
