package process

import (
	"errors"

	"memfs/mm"
)

// wsLimits are the bounds of a working set in pages.
type wsLimits struct {
	min, max uint64
	flags    uint32
}

// Flags of SetProcessWorkingSetSizeEx.
const (
	HardMinEnable  = 1
	HardMinDisable = 2
	HardMaxEnable  = 4
	HardMaxDisable = 8
)

const (
	lowestMin = 20 // pages; a lower minimum becomes this
	lowestMax = 13
)

func defaultLimits() wsLimits {
	return wsLimits{min: 50, max: 345, flags: HardMinDisable | HardMaxDisable}
}

// applyLimits tells the memory manager. A maximum that is not hard may be exceeded while frames are plenty.
// +checklocks:p.mu
func (p *Process) applyLimits() {
	p.space.SetBounds(mm.WorkingSetBounds{
		Min: p.ws.min + p.large, HardMin: p.ws.flags&HardMinEnable != 0,
		Max: p.ws.max + p.large, HardMax: p.ws.flags&HardMaxEnable != 0,
	})
}

// WorkingSetSize is GetProcessWorkingSetSizeEx: the bounds in bytes and the QUOTA_LIMITS_ flags.
func (p *Process) WorkingSetSize() (minimum, maximum uint64, flags uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ws.min << pageShift, p.ws.max << pageShift, p.ws.flags
}

// SetWorkingSetSize is SetProcessWorkingSetSizeEx, in bytes. Both all ones empties the working set instead.
// InvalidParameter: bounds or flags that make no sense.
func (p *Process) SetWorkingSetSize(minimum, maximum uint64, flags uint32) error {
	none := ^uint64(0)
	if p.image.Arch == X86 {
		none = 0xFFFFFFFF
	}
	const minBits, maxBits = HardMinEnable | HardMinDisable, HardMaxEnable | HardMaxDisable
	if flags&^(minBits|maxBits) != 0 || flags&minBits == minBits || flags&maxBits == maxBits {
		return InvalidParameter
	}
	if minimum&none == none && maximum&none == none {
		p.EmptyWorkingSet()
		return nil
	}
	low, most := minimum>>pageShift, maximum>>pageShift
	if minimum == 0 || minimum > maximum || most < lowestMax {
		return InvalidParameter
	}
	low = max(low, lowestMin)
	p.mu.Lock()
	defer p.mu.Unlock()
	kept := p.ws.flags
	for _, bits := range []uint32{minBits, maxBits} {
		if flags&bits != 0 {
			kept = kept&^bits | flags&bits
		}
	}
	p.ws = wsLimits{min: low, max: max(low, most), flags: kept}
	p.applyLimits()
	return nil
}

// EmptyWorkingSet takes every page that is not locked out of the working set; touching it again is a soft fault.
func (p *Process) EmptyWorkingSet() {
	p.fetch(0, everything<<pageShift) // the host's copies are in the working set
	p.space.Empty()
}

// PageFacts is what QueryWorkingSetEx says of a page (PSAPI_WORKING_SET_EX_BLOCK).
type PageFacts struct {
	Valid      bool
	ShareCount uint32
	Protection Protection
	Shared     bool
	Locked     bool
	Large      bool
}

// mostShares is the highest share count that there is room for.
const mostShares = 7

// WorkingSetEx is QueryWorkingSetEx for one address, any address. A page that is not in the working set has all else 0, save
// that a section's is shared. A private page is shared while it is combined with others.
func (p *Process) WorkingSetEx(addr uint64) PageFacts {
	page := addr >> pageShift
	p.mu.Lock()
	v := p.find(page)
	var a attr
	committed := true
	if v != nil {
		a = v.at(page)
	}
	if v != nil && v.view != nil {
		committed, _ = v.view.state(page, page)
	}
	p.mu.Unlock()
	if v == nil || !a.committed || a.offered || addr > p.high {
		return PageFacts{}
	}
	shared := v.view != nil && !a.copied && committed
	i := p.space.Page(page)
	if i.State != mm.StateActive || a.protection.Base() == NoAccess || !i.Shared && shared {
		return PageFacts{Shared: shared}
	}
	return PageFacts{
		Valid: true, Protection: a.protection, Locked: i.Locked, Shared: shared || i.Sharers > 0,
		ShareCount: min(i.Shares, mostShares), Large: v.large,
	}
}

// WorkingSetPage is one entry of QueryWorkingSet.
type WorkingSetPage struct {
	Address    uint64
	Protection Protection
	Locked     bool
	Shared     bool
	ShareCount uint32
}

// WorkingSet lists the pages in the working set, ascending.
func (p *Process) WorkingSet() (pages []WorkingSetPage) {
	p.space.Each(0, everything, func(i mm.PageInfo) bool {
		if i.State == mm.StateActive {
			pages = append(pages, WorkingSetPage{
				Address: i.Index << pageShift, Locked: i.Locked, Shared: i.Shared || i.Sharers > 0,
				ShareCount: min(i.Shares, mostShares),
			})
		}
		return true
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, w := range pages {
		if v := p.find(w.Address >> pageShift); v != nil {
			w.Protection = v.at(w.Address >> pageShift).protection
			pages[n] = w
			n++
		}
	}
	return pages[:n]
}

// overhead is how many pages of the minimum working set cannot be locked.
const overhead = 8

// Lock is VirtualLock: the pages are brought in and stay. Locks do not nest. WorkingSetQuota: more than the minimum working
// set less a little would be locked. NoAccessError: a page cannot be read. An armed guard page fails with
// GuardPageViolation, once.
func (p *Process) Lock(addr, size uint64) error {
	first, last, ok := p.span(addr, size)
	if !ok {
		return InvalidParameter
	}
	p.mu.Lock()
	most := p.lockable() + p.large
	p.mu.Unlock()
	var failed error
	err := p.touch(Read, first<<pageShift, (last-first+1)<<pageShift, func(r part, at, _, n uint64) error {
		if r.vad.system || r.vad.physical || r.vad.large || failed != nil {
			return nil // always there
		}
		lock := p.space.Lock
		if r.piece != nil && !r.copied {
			if failed = r.piece.fetch(r.vad.view, at, int(n)); failed != nil {
				return nil
			}
			lock = r.piece.shown.Lock
		}
		failed = lock(at>>pageShift, (at+n-1)>>pageShift, most)
		return nil
	})
	if err == nil {
		return win32(failed)
	}
	return quiet(err)
}

// quiet is the error that a call returns which met what would have been an exception in the program.
func quiet(err error) error {
	var e *Exception
	if !errors.As(err, &e) { // a failure of the memory manager, or none
		return win32(err)
	}
	switch e.Code {
	case StatusGuardPageViolation, StatusStackOverflow:
		return GuardPageViolation
	case StatusInPageError:
		return SwapError
	}
	return NoAccessError
}

// Unlock is VirtualUnlock. NotLocked: a page was not locked; those leave the working set, and the others are unlocked.
func (p *Process) Unlock(addr, size uint64) error {
	first, last, ok := p.span(addr, size)
	if !ok {
		return InvalidParameter
	}
	p.mu.Lock()
	v := p.find(first)
	there := v != nil && v.contains(first, last) && v.all(first, last, func(a attr) bool { return a.committed })
	p.mu.Unlock()
	switch {
	case !there:
		return NotLocked
	case v.large:
		return nil // nothing unlocks them
	}
	all := p.space.Unlock(first, last)
	if w := p.window.Load(); w != nil {
		w.shoot() // what was not locked has left the working set
	}
	if !all {
		return NotLocked
	}
	return nil
}

// SetPagePriority sets in which standby list the process's own pages wait, 0 to 7 (ProcessMemoryPriority goes to 5).
// InvalidParameter: there is no such list.
func (p *Process) SetPagePriority(priority uint8) error { return win32(p.space.SetPriority(priority)) }

// PagePriority is what SetPagePriority has set.
func (p *Process) PagePriority() uint8 { return p.space.Priority() }

// MaxLocked is how many bytes Lock may lock in all.
func (p *Process) MaxLocked() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lockable() << pageShift
}

// lockable is MaxLocked in pages.
// +checklocks:p.mu
func (p *Process) lockable() uint64 { return p.ws.min - min(p.ws.min, overhead) }
