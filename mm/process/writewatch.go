package process

import (
	"math/bits"
	"slices"
)

// watch is which pages of a MEM_WRITE_WATCH allocation were written: bits of 64 pages each. nil is no watch.
type watch struct {
	dirty   map[uint64]uint64
	latched map[uint64]uint64 // seen by a VirtualProtect since, which makes them outlast a decommit
}

// watchBytes is what the bitmap of so many pages costs in records, as charged.
func watchBytes(pages uint64) int { return int(pages/8) + 64 }

func newWatch() *watch {
	return &watch{dirty: make(map[uint64]uint64), latched: make(map[uint64]uint64)}
}

// mark notes that pages were written.
func (w *watch) mark(first, last uint64) {
	if w == nil {
		return
	}
	for page := first; page <= last; page++ {
		w.dirty[page>>6] |= 1 << (page & 63)
	}
}

// words calls f for each word of m that holds pages of first..last, with the mask of those.
func words(m map[uint64]uint64, first, last uint64, f func(key, mask uint64)) {
	mask := func(key uint64) uint64 {
		b := ^uint64(0)
		if key == first>>6 {
			b &= ^uint64(0) << (first & 63)
		}
		if key == last>>6 {
			b &= ^uint64(0) >> (63 - last&63)
		}
		return b
	}
	if last>>6-first>>6 < uint64(len(m)) {
		for key := first >> 6; key <= last>>6; key++ {
			f(key, mask(key))
		}
		return
	}
	keys := make([]uint64, 0, len(m))
	for key := range m {
		if first>>6 <= key && key <= last>>6 {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		f(key, mask(key))
	}
}

func clearBits(m map[uint64]uint64, key, mask uint64) {
	if m[key] &^= mask; m[key] == 0 {
		delete(m, key)
	}
}

// latch notes that a VirtualProtect has seen the pages.
func (w *watch) latch(first, last uint64) {
	if w == nil {
		return
	}
	words(w.dirty, first, last, func(key, mask uint64) {
		if b := w.dirty[key] & mask; b != 0 {
			w.latched[key] |= b
		}
	})
}

// decommit forgets the pages, save those that were latched.
func (w *watch) decommit(first, last uint64) {
	if w == nil {
		return
	}
	words(w.dirty, first, last, func(key, mask uint64) { clearBits(w.dirty, key, mask&^w.latched[key]) })
}

// pages lists up to most written pages among first..last, and clears those it returns if so asked.
func (w *watch) pages(first, last uint64, most int, clear bool) (pages []uint64) {
	words(w.dirty, first, last, func(key, mask uint64) {
		for b := w.dirty[key] & mask; b != 0 && len(pages) < most; b &= b - 1 {
			pages = append(pages, key<<6|uint64(bits.TrailingZeros64(b)))
		}
	})
	if clear {
		for _, page := range pages {
			w.reset(page, page)
		}
	}
	return pages
}

func (w *watch) reset(first, last uint64) {
	words(w.dirty, first, last, func(key, mask uint64) {
		clearBits(w.dirty, key, mask)
		clearBits(w.latched, key, mask)
	})
}

// WatchReset is WRITE_WATCH_FLAG_RESET.
const WatchReset = 1

// GetWriteWatch returns the addresses of up to count pages of the range that were written, ascending; with WatchReset those
// count as not written from then on. InvalidParameter: the range is not within one MEM_WRITE_WATCH allocation, or flags or
// sizes make no sense.
func (p *Process) GetWriteWatch(flags uint32, addr, size uint64, count int) ([]uint64, error) {
	if count == 0 || flags&^WatchReset != 0 {
		return nil, InvalidParameter
	}
	var found []uint64
	err := p.watched(addr, size, func(w *watch, first, last uint64) {
		found = w.pages(first, last, count, flags&WatchReset != 0)
	})
	for i := range found {
		found[i] <<= pageShift
	}
	return found, err
}

// ResetWriteWatch makes the pages of the range count as not written. Errors as GetWriteWatch.
func (p *Process) ResetWriteWatch(addr, size uint64) error {
	return p.watched(addr, size, func(w *watch, first, last uint64) { w.reset(first, last) })
}

// watched runs f on a watched range, with no write under way in it.
func (p *Process) watched(addr, size uint64, f func(w *watch, first, last uint64)) error {
	first, last, ok := p.span(addr, size)
	if !ok {
		return InvalidParameter
	}
	p.fetch(addr, size)
	c, err := p.change(nil, first, last)
	defer p.done(c)
	if err != nil {
		return err
	}
	v := p.find(first)
	if v == nil || v.watch == nil || !v.contains(first, last) {
		return InvalidParameter
	}
	f(v.watch, first, last)
	return nil
}
