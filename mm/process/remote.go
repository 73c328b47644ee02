package process

import "errors"

// peek reads memory as the system does for another process: guard pages do not go off, and what cannot be read is
// NoAccessError.
func (p *Process) peek(addr uint64, buf []byte) error { return p.peekWith(addr, buf, p.load) }

func (p *Process) peekWith(addr uint64, buf []byte, load func(r part, addr uint64, buf []byte) error) error {
	if len(buf) == 0 {
		return nil
	}
	first, last := addr>>pageShift, (addr+uint64(len(buf))-1)>>pageShift
	if last < first {
		return NoAccessError
	}
	p.mu.Lock()
	h := p.acquire(first, last, false)
	ok := p.regions == nil && p.reads(first, last)
	p.mu.Unlock()
	err := error(NoAccessError)
	if ok {
		err = p.copyHeld(addr, uint64(len(buf)), func(r part, at, i, n uint64) error { return load(r, at, buf[i:i+n]) })
	}
	p.mu.Lock()
	p.release(h)
	p.mu.Unlock()
	return win32(err)
}

// copyHeld runs f for each part of an allocation that an access lies in, whose pages are held.
func (p *Process) copyHeld(addr, size uint64, f func(r part, at, i, n uint64) error) error {
	for i := uint64(0); i < size; {
		p.mu.Lock()
		r := p.partAt((addr + i) >> pageShift)
		p.mu.Unlock()
		n := min(size-i, (r.last+1)<<pageShift-(addr+i))
		if err := f(r, addr+i, i, n); err != nil {
			return err
		}
		i += n
	}
	return nil
}

// reads says whether all pages can be read with no guard page among them.
// +checklocks:p.mu
func (p *Process) reads(first, last uint64) bool {
	return p.every(first, last, func(a attr) bool { return a.protection.Readable() && a.protection&Guard == 0 })
}

// every says whether f holds for all pages of a range, none of them free, reserved or offered.
// +checklocks:p.mu
func (p *Process) every(first, last uint64, f func(attr) bool) bool {
	for page := first; page <= last; {
		v := p.find(page)
		if v == nil || p.ended {
			return false
		}
		end := min(last, v.last)
		if v.physical {
			for ; page <= end; page++ {
				if !p.awe.mapped(page) {
					return false
				}
			}
			continue
		}
		if !v.all(page, end, func(a attr) bool { return a.committed && !a.offered && f(a) }) {
			return false
		}
		if v.view != nil && !v.view.committed(v, page, end) {
			return false
		}
		page = end + 1
	}
	return true
}

// ReadMemory is ReadProcessMemory of this process: all of buf or, with PartialCopy, nothing.
func (p *Process) ReadMemory(addr uint64, buf []byte) error {
	p.fetch(addr, uint64(len(buf)))
	err := p.peek(addr, buf)
	if errors.Is(err, NoAccessError) {
		return PartialCopy
	}
	return err
}

// WriteMemory is WriteProcessMemory of this process. Memory that can be executed but not written is written all the same,
// as debuggers want it, if the whole range is like that. NoAccessError: the memory cannot be written.
func (p *Process) WriteMemory(addr uint64, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	first, last := addr>>pageShift, (addr+uint64(len(data))-1)>>pageShift
	if last < first {
		return NoAccessError
	}
	end := p.editing(addr, data)
	err := p.writeMemory(addr, data, first, last)
	end(err)
	return err
}

func (p *Process) writeMemory(addr uint64, data []byte, first, last uint64) error {
	p.mu.Lock()
	h := p.acquire(first, last, false)
	ok, lift := p.writes(first, last)
	if ok && (lift || p.copiesAny(first, last)) { // whoever copies a page has it alone
		p.release(h)
		h = p.acquire(first, last, true)
		ok, lift = p.writes(first, last)
	}
	p.mu.Unlock()
	err := error(NoAccessError)
	if ok && p.regions == nil {
		err = p.copyHeld(addr, uint64(len(data)), func(r part, at, i, n uint64) error {
			r.copies = r.copies || lift
			return p.store(r, at, data[i:i+n])
		})
	}
	if err == nil {
		p.finish(h, Write)
		return nil
	}
	p.finish(h, Read)
	return win32(err)
}

// writes says whether all pages can be written for another process. lift says that their protection must be lifted for it:
// they can be executed and not written. Views of data cannot be lifted above what they were mapped with.
// +checklocks:p.mu
func (p *Process) writes(first, last uint64) (ok, lift bool) {
	unguarded := func(a attr) bool { return a.protection&Guard == 0 }
	if p.every(first, last, func(a attr) bool { return unguarded(a) && a.protection.Writable() }) {
		return true, false
	}
	if !p.every(first, last, func(a attr) bool {
		return unguarded(a) && a.protection.Executable() && !a.protection.Writable()
	}) {
		return false, false
	}
	for page := first; page <= last; {
		r := p.partAt(page)
		if r.piece != nil && r.vad.kind == TypeMapped {
			return false, false
		}
		page = r.last + 1
	}
	return true, true
}
