package process

import (
	"errors"

	"memfs/mm"
)

// Large pages: allocations and views whose pages come as 2 MiB at once, have their frames from the start, and keep them. Their
// frames are locked one by one, and need not be contiguous. They count as locked pages, of which there may be half of all
// frames, but neither against VirtualLock's quota nor the bounds of the working set.

// largePagePages is how many pages a large page is.
const largePagePages = LargePage >> pageShift

// mayHaveLarge checks a request for large pages. PrivilegeNotHeld without SeLockMemoryPrivilege; InvalidParameter for what are no
// whole large pages.
func (p *Process) mayHaveLarge(addr, size uint64) error {
	switch {
	case !p.image.LockMemory:
		return PrivilegeNotHeld
	case addr%LargePage != 0 || size%LargePage != 0:
		return InvalidParameter
	}
	return nil
}

// lockLarge gives large pages, which are held, their frames by lock. NoSystemResources if there are not so many; nothing has
// changed then.
// +checklocks:p.mu
func (p *Process) lockLarge(v *vad, lock func() error) error {
	p.large += v.pages()
	p.applyLimits() // they are no reason to trim others
	if err := p.unlocked(lock); err != nil {
		p.forgetLarge(v)
		if errors.Is(err, mm.StatusNoFrames) || errors.Is(err, mm.StatusWorkingSetQuota) {
			return NoSystemResources
		}
		return win32(err)
	}
	return nil
}

// forgetLarge undoes what lockLarge counted, of an allocation or a view that goes.
// +checklocks:p.mu
func (p *Process) forgetLarge(v *vad) {
	p.large -= v.pages()
	p.applyLimits()
}

// whole says whether pages are whole large pages where these are what the allocation has: they have one protection each.
func (v *vad) whole(first, last uint64) bool {
	return !v.large || first%largePagePages == 0 && (last+1)%largePagePages == 0
}

// largeSection gives a new section's pages, which are committed, their frames for as long as it is there.
func largeSection(seg *mm.Segment) error {
	r := seg.Rule()
	r.Pinned = true
	_, err := seg.SetRule(r)
	if errors.Is(err, mm.StatusWorkingSetQuota) {
		return NoSystemResources
	}
	return win32(err)
}
