package process

import (
	"slices"
	"sort"
)

// vad is a virtual address descriptor: one reservation, or one view. Pages are virtual page numbers.
type vad struct {
	first, last uint64     // pages, inclusive
	protection  Protection // of the call that made it; never changes
	kind        Type
	runs        []run
	watch       *watch // of MEM_WRITE_WATCH
	view        *view  // nil of private memory
	physical    bool   // MEM_PHYSICAL: pages come from MapUserPhysicalPages
	large       bool   // large pages
	placeholder bool   // nothing but MEM_REPLACE_PLACEHOLDER can be done with it
	replaced    bool   // took the place of a placeholder
	system      bool   // the process cannot change it
	use         string
}

// run is pages with the same attributes: from first to before the next run's.
//
// INVARIANT: a vad's first run begins with it, runs ascend, and neighbours differ.
type run struct {
	first uint64
	attr
}

// attr is what a page is: reserved if it is not committed.
type attr struct {
	committed  bool
	offered    bool // OfferVirtualMemory: cannot be touched until reclaimed
	copied     bool // of a view: the process has a copy of its own
	protection Protection
}

// What records cost in bytes, as charged.
const (
	vadBytes = 192
	runBytes = 16
)

func newVAD(first, last uint64, p Protection) *vad {
	return &vad{first: first, last: last, protection: p, kind: TypePrivate, runs: []run{{first: first}}}
}

// pages is how many there are.
func (v *vad) pages() uint64 { return v.last - v.first + 1 }

// base is the address of the first page.
func (v *vad) base() uint64 { return v.first << pageShift }

func (v *vad) contains(first, last uint64) bool { return v.first <= first && last <= v.last }

// runAt is the index of the run that page lies in.
func (v *vad) runAt(page uint64) int {
	return sort.Search(len(v.runs), func(i int) bool { return v.runs[i].first > page }) - 1
}

// end is the last page of run i.
func (v *vad) end(i int) uint64 {
	if i+1 < len(v.runs) {
		return v.runs[i+1].first - 1
	}
	return v.last
}

func (v *vad) at(page uint64) attr { return v.runs[v.runAt(page)].attr }

// each calls f for the runs among first..last, cut to that range.
func (v *vad) each(first, last uint64, f func(first, last uint64, a attr)) {
	for i := v.runAt(first); i < len(v.runs) && v.runs[i].first <= last; i++ {
		f(max(first, v.runs[i].first), min(last, v.end(i)), v.runs[i].attr)
	}
}

// all says whether f holds for every page of first..last.
func (v *vad) all(first, last uint64, f func(attr) bool) bool {
	ok := true
	v.each(first, last, func(_, _ uint64, a attr) { ok = ok && f(a) })
	return ok
}

// set changes the pages first..last by f.
func (v *vad) set(first, last uint64, f func(attr) attr) {
	lo, hi := v.runAt(first), v.runAt(last)
	var mid []run
	add := func(at uint64, a attr) {
		if n := len(mid); n == 0 || mid[n-1].attr != a {
			mid = append(mid, run{at, a})
		}
	}
	if lo > 0 {
		add(v.runs[lo-1].first, v.runs[lo-1].attr)
	}
	if v.runs[lo].first < first {
		add(v.runs[lo].first, v.runs[lo].attr)
	}
	for i := lo; i <= hi; i++ {
		add(max(first, v.runs[i].first), f(v.runs[i].attr))
	}
	if v.end(hi) > last {
		add(last+1, v.runs[hi].attr)
	}
	next := hi + 1
	if next < len(v.runs) {
		add(v.runs[next].first, v.runs[next].attr)
		next++
	}
	v.runs = slices.Replace(v.runs, max(lo-1, 0), next, mid...)
}

// committed lists the committed pages among first..last, as ranges.
func (v *vad) committed(first, last uint64, want bool) (ranges [][2]uint64) {
	v.each(first, last, func(lo, hi uint64, a attr) {
		if a.committed != want {
			return
		}
		if n := len(ranges); n > 0 && ranges[n-1][1]+1 == lo {
			ranges[n-1][1] = hi
			return
		}
		ranges = append(ranges, [2]uint64{lo, hi})
	})
	return ranges
}

// copiedRanges lists the pages among first..last that the process has copies of its own of, as ranges.
func (v *vad) copiedRanges(first, last uint64) (ranges [][2]uint64) {
	v.each(first, last, func(lo, hi uint64, a attr) {
		if a.copied {
			ranges = append(ranges, [2]uint64{lo, hi})
		}
	})
	return ranges
}

// --- the tree of an address space ----------------------------------------------------------------------------------------

// find returns the vad that page lies in, nil if it is free.
// +checklocks:p.mu
func (p *Process) find(page uint64) *vad {
	i := p.after(page)
	if i < len(p.vads) && p.vads[i].first <= page {
		return p.vads[i]
	}
	return nil
}

// after is the index of the first vad that ends at page or later.
// +checklocks:p.mu
func (p *Process) after(page uint64) int {
	vads := p.vads
	return sort.Search(len(vads), func(i int) bool { return vads[i].last >= page })
}

// +checklocks:p.mu
func (p *Process) insert(v *vad) {
	p.vads = slices.Insert(p.vads, p.after(v.first), v)
	p.virtual += v.pages()
	p.virtualPeak = max(p.virtualPeak, p.virtual)
}

// +checklocks:p.mu
func (p *Process) remove(v *vad) {
	if i := slices.Index(p.vads, v); i >= 0 {
		p.vads = slices.Delete(p.vads, i, i+1)
		p.virtual -= v.pages()
	}
}

// free says whether no vad owns a 64 KiB slot of pages first..last.
// +checklocks:p.mu
func (p *Process) free(first, last uint64) bool {
	i := p.after(first &^ (slotPages - 1))
	return i >= len(p.vads) || p.vads[i].first&^(slotPages-1) > last
}

// firstFit is where the search for free memory begins: below lie the addresses that programs expect to fault.
const firstFit = 0x100000 >> pageShift

// alignment is what the first page of an allocation or a view is a multiple of where the caller leaves it open.
func alignment(typ uint32) uint64 {
	if typ&MemLargePages != 0 {
		return largePagePages
	}
	return slotPages
}

// gap finds n free pages beginning on a multiple of align, which is one of slots: the lowest, or with topDown the highest. ok is
// false if there are none.
// +checklocks:p.mu
func (p *Process) gap(n, align uint64, topDown bool) (first uint64, ok bool) {
	low, high := p.low>>pageShift, p.high>>pageShift
	if n > high-low+1 {
		return 0, false
	}
	if topDown {
		return p.highestGap(n, align, low, high)
	}
	if first, ok := p.lowestGap(n, align, firstFit, high); ok {
		return first, true
	}
	return p.lowestGap(n, align, low, high)
}

// +checklocks:p.mu
func (p *Process) lowestGap(n, align, at, high uint64) (uint64, bool) {
	at = (at + align - 1) &^ (align - 1)
	for i := p.after(at); ; i++ {
		end := high
		if i < len(p.vads) {
			end = p.vads[i].first&^(slotPages-1) - 1
		}
		if end+1 >= at+n && end != ^uint64(0) {
			return at, true
		}
		if i >= len(p.vads) {
			return 0, false
		}
		at = max(at, (p.vads[i].last|(align-1))+1)
	}
}

// +checklocks:p.mu
func (p *Process) highestGap(n, align, low, high uint64) (uint64, bool) {
	end := high + 1 // first page above the gap
	for i := len(p.vads) - 1; ; i-- {
		start := low
		if i >= 0 {
			start = (p.vads[i].last | (slotPages - 1)) + 1
		}
		if end >= n {
			if first := (end - n) &^ (align - 1); first >= start {
				return first, true
			}
		}
		if i < 0 {
			return 0, false
		}
		end = min(end, p.vads[i].first&^(slotPages-1))
	}
}
