package process

import "errors"

// peek reads memory as the system does for another process: guard pages do not go off, and what cannot be read is
// NoAccessError.
func (p *Process) peek(addr uint64, buf []byte) error {
	return win32(p.remote(&access{
		kind: Read, addr: addr, size: uint64(len(buf)),
		do: func(r part, at, i, n uint64) error { return p.load(r, at, buf[i:i+n]) },
	}, p.readable))
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

// permission is what an access from outside needs of the pages that it is of; lift says that their protection must be lifted
// for it. Process.mu is held.
type permission func(first, last uint64) (ok, lift bool)

// readable says whether all pages can be read with no guard page among them. It is called with p.mu held, which the analyser
// cannot see.
//
// +checklocksignore
func (p *Process) readable(first, last uint64) (ok, lift bool) {
	return p.every(first, last, func(a attr) bool { return a.protection.Readable() && a.protection&Guard == 0 }), false
}

// remote is access by somebody else: all of it is checked by permitted, and then, stretch by stretch, once more. NoAccessError.
func (p *Process) remote(a *access, permitted permission) error {
	if a.size == 0 {
		return nil
	}
	if a.addr+a.size-1 < a.addr {
		return NoAccessError
	}
	first, last := span(a.addr, a.size)
	p.mu.Lock()
	views, waits := p.viewsAmong(first, last)
	ok := p.regions == nil
	if ok && !(a.unshared && views) {
		ok, _ = permitted(first, last)
	}
	p.mu.Unlock()
	var err error
	switch {
	case a.unshared && views:
		return ErrView
	case !ok:
		return NoAccessError
	case waits:
		err = p.entered(a)
	}
	for done := uint64(0); err == nil && done < a.size; {
		var n uint64
		n, err = p.inStretch(a, done, func(v *vad, w *Window, n uint64) (bool, error) {
			return p.remoteHeld(a, permitted, v, w, done, n)
		})
		done += n
	}
	if a.leave != nil {
		a.leave()
	}
	return err
}

// remoteHeld is the part of remote that lies in a stretch of view v, or of none, from byte done on: it holds the pages. again
// says that they are of v no more, or that the host has been told nothing through its window w.
func (p *Process) remoteHeld(a *access, permitted permission, v *vad, w *Window, done, n uint64) (again bool, err error) {
	at := a.addr + done
	first, last := span(at, n)
	var h *hold
	var ok, lift bool
	p.mu.Lock()
	for exclusive := false; ; exclusive = true { // whoever copies a page has it alone
		h = p.acquire(first, last, exclusive)
		if now, end := p.stretch(first, last); now != v || end != last || a.edit != nil && p.window.Load() != w {
			again = true
			break
		}
		ok, lift = permitted(first, last)
		if exclusive || !ok || a.kind != Write || !lift && !p.copiesAny(first, last) {
			break
		}
		p.release(h)
	}
	p.mu.Unlock()
	kind := Read // nothing has been written
	if err = NoAccessError; !again && ok {
		err = p.copyHeld(at, n, func(r part, at, i, n uint64) error {
			r.copies = r.copies || lift
			return a.do(r, at, done+i, n)
		})
		if err == nil {
			kind = a.kind
		}
	}
	p.finish(h, kind)
	return again, err
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
	return win32(p.remote(&access{
		kind: Write, addr: addr, size: uint64(len(data)),
		do:   func(r part, at, i, n uint64) error { return p.store(r, at, data[i:i+n]) },
		edit: func(at, i, n uint64) func(error) { return p.editing(at, data[i:i+n]) },
	}, p.writes))
}

// writes says whether all pages can be written for another process. lift says that their protection must be lifted for it:
// they can be executed and not written. Views of data cannot be lifted above what they were mapped with. It is called with p.mu
// held, which the analyser cannot see.
//
// +checklocksignore
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
