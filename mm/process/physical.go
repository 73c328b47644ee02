package process

import (
	"memfs/mm"
)

// physicalPages are the pages that a process holds by AllocateUserPhysicalPages (AWE): always in frames, and in the address
// space only where MapUserPhysicalPages has put them. They are a Space of their own, all of whose pages are locked; a
// program knows them by frame number.
type physicalPages struct {
	space *mm.Space
	pages map[uint64]uint64 // page of space, by frame number
	at    map[uint64]uint64 // page of space, by virtual page number
	next  uint64            // page of space
}

// mapped says whether a virtual page has a physical page.
func (a *physicalPages) mapped(page uint64) bool {
	if a == nil {
		return false
	}
	_, ok := a.at[page]
	return ok
}

// unmap takes the physical pages out of virtual pages.
func (a *physicalPages) unmap(first, last uint64) {
	if a == nil {
		return
	}
	for page := range a.at {
		if first <= page && page <= last {
			delete(a.at, page)
		}
	}
}

// each calls f for each page of an access, with its address in the space of the physical pages. The pages are held, so
// that what is mapped where does not change.
func (a *physicalPages) each(addr uint64, size int, f func(at uint64, i, n int) error) error {
	for i := 0; i < size; {
		n := min(size-i, int(PageSize-addr%PageSize))
		if err := f(a.at[addr>>pageShift]<<pageShift|addr%PageSize, i, n); err != nil {
			return err
		}
		i, addr = i+n, addr+uint64(n)
	}
	return nil
}

// AllocatePhysical is AllocateUserPhysicalPages: up to n frames, whose numbers it returns. PrivilegeNotHeld without
// SeLockMemoryPrivilege; NoSystemResources if not even one frame can be given away.
func (p *Process) AllocatePhysical(n uint64) (frames []uint64, err error) {
	if !p.image.LockMemory {
		return nil, PrivilegeNotHeld
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.acquire(physicalPage, physicalPage, true)
	defer p.release(h)
	if p.ended {
		return nil, AccessDenied
	}
	if p.awe == nil {
		p.awe = &physicalPages{
			space: p.machine.sys.NewSpace(), pages: make(map[uint64]uint64), at: make(map[uint64]uint64), next: 1,
		}
	}
	a := p.awe
	err = p.unlocked(func() error {
		for ; n > 0; n-- {
			page := a.next
			if err := a.space.Commit(page, page); err != nil {
				return err
			}
			if err := a.space.Lock(page, page, everything); err != nil {
				a.space.Decommit(page, page)
				return err
			}
			a.next++
			frame := uint64(a.space.Page(page).Frame)
			a.pages[frame] = page
			frames = append(frames, frame)
		}
		return nil
	})
	if len(frames) == 0 && err != nil {
		return nil, NoSystemResources
	}
	return frames, nil
}

// FreePhysical is FreeUserPhysicalPages: frames that are mapped are unmapped first. It returns how many were freed;
// InvalidParameter if one is not the process's.
func (p *Process) FreePhysical(frames []uint64) (freed int, err error) {
	if !p.image.LockMemory {
		return 0, PrivilegeNotHeld
	}
	for _, frame := range frames {
		if err := p.freeFrame(frame); err != nil {
			return freed, err
		}
		freed++
	}
	return freed, nil
}

func (p *Process) freeFrame(frame uint64) error {
	for {
		page, at, mapped, ok := p.frameAt(frame)
		switch {
		case !ok:
			return InvalidParameter
		case mapped:
			if err := p.MapPhysical(at<<pageShift, 1, nil); err != nil && p.Ended() {
				return AccessDenied
			}
			continue // somebody else may have mapped it meanwhile
		}
		p.mu.Lock()
		h := p.acquire(physicalPage, physicalPage, true)
		there := !p.ended && p.awe.pages[frame] == page && !p.awe.shows(page)
		if there {
			delete(p.awe.pages, frame)
			p.awe.space.Decommit(page, page)
		}
		p.release(h)
		p.mu.Unlock()
		if there {
			return nil
		}
	}
}

// frameAt is the page of the physical pages that a frame holds, and the virtual page at which it is mapped, if it is. ok is
// false if the frame is not the process's.
func (p *Process) frameAt(frame uint64) (page, at uint64, mapped, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.awe == nil || p.ended {
		return 0, 0, false, false
	}
	page, ok = p.awe.pages[frame]
	for v, shown := range p.awe.at {
		if ok && shown == page {
			return page, v, true, true
		}
	}
	return page, 0, false, ok
}

// shows says whether a page of the physical ones is mapped.
func (a *physicalPages) shows(page uint64) bool {
	for _, shown := range a.at {
		if shown == page {
			return true
		}
	}
	return false
}

// MapPhysical is MapUserPhysicalPages: the frames appear at addr, in place of what is mapped there; nil unmaps n pages. A
// frame can be mapped once only. InvalidParameter: not within a MEM_PHYSICAL allocation, or not the process's frames.
func (p *Process) MapPhysical(addr, n uint64, frames []uint64) error {
	first, last, ok := p.span(addr, n<<pageShift)
	if !ok || n > everything || frames != nil && uint64(len(frames)) != n {
		return InvalidParameter
	}
	p.fetch(addr, n<<pageShift) // what was stored belongs to the frames that were mapped then
	return p.revise(addr, n<<pageShift, true, func(r *revocation) error { return p.mapFrames(r, first, last, frames) })
}

func (p *Process) mapFrames(r *revocation, first, last uint64, frames []uint64) error {
	c, err := p.change(r, first, last)
	defer p.done(c)
	if err != nil {
		return err
	}
	v := p.find(first)
	if v == nil || !v.physical || !v.contains(first, last) || frames != nil && p.awe == nil {
		return InvalidParameter
	}
	pages := make([]uint64, 0, len(frames))
	seen := make(map[uint64]bool)
	if p.awe != nil {
		for at, page := range p.awe.at {
			if at < first || at > last {
				seen[page] = true // mapped elsewhere, and stays so
			}
		}
	}
	for _, frame := range frames {
		page, ok := p.awe.pages[frame]
		if !ok || seen[page] {
			return InvalidParameter
		}
		seen[page] = true
		pages = append(pages, page)
	}
	p.awe.unmap(first, last)
	for i, page := range pages {
		p.awe.at[first+uint64(i)] = page
	}
	return nil
}
