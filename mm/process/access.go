package process

import (
	"encoding/binary"
	"errors"

	"memfs/mm"
)

// Read copies memory into buf, as loads do. The pages are checked in order before any is read, so that what faults has no
// effect but that of the exception: an *Exception, with the address of the first byte that could not be read. Busy: the memory
// is a view's, and too many calls wait for real programs already.
func (p *Process) Read(addr uint64, buf []byte) error {
	p.fetch(addr, uint64(len(buf)))
	return p.read(addr, buf)
}

func (p *Process) read(addr uint64, buf []byte) error {
	return p.touch(Read, addr, uint64(len(buf)), func(r part, at, i, n uint64) error { return p.load(r, at, buf[i:i+n]) })
}

// Write copies data into memory, as stores do. Like Read, all or nothing.
func (p *Process) Write(addr uint64, data []byte) error {
	return p.access(&access{
		kind: Write, addr: addr, size: uint64(len(data)),
		do:   func(r part, at, i, n uint64) error { return p.store(r, at, data[i:i+n]) },
		edit: func(at, i, n uint64) func(error) { return p.editing(at, data[i:i+n]) },
	})
}

// Execute fetches the instruction at addr: it checks and faults, and runs nothing.
func (p *Process) Execute(addr uint64) error {
	var b [1]byte
	err := p.touch(Fetch, addr, 1, func(r part, at, _, _ uint64) error { return p.load(r, at, b[:]) })
	var e *Exception
	if errors.As(err, &e) && e.Code == StatusAccessViolation && e.Kind == Fetch {
		return p.denied(e)
	}
	return err
}

// load reads pages that have been checked and are held.
func (p *Process) load(r part, addr uint64, buf []byte) error {
	switch {
	case r.piece != nil:
		return p.loadView(r, addr, buf)
	case r.vad.system:
		copy(buf, p.sharedPage()[addr%PageSize:])
		return nil
	case r.vad.physical:
		return p.awe.each(addr, len(buf), func(at uint64, i, n int) error { return p.awe.space.Read(at, buf[i:i+n]) })
	}
	return p.space.Read(addr, buf)
}

func (p *Process) store(r part, addr uint64, data []byte) error {
	switch {
	case r.piece != nil:
		return p.storeView(r, addr, data)
	case r.vad.physical:
		return p.awe.each(addr, len(data), func(at uint64, i, n int) error { return p.awe.space.Write(at, data[i:i+n]) })
	}
	return p.space.Write(addr, data)
}

// access is what a call loads or stores.
type access struct {
	kind       Kind
	addr, size uint64
	// do loads or stores within a part of an allocation whose pages have been checked and are held. It gets the address, and
	// the place and number of bytes.
	do func(r part, at, i, n uint64) error
	// edit says to the host what is about to be stored into private memory, with no pages held, and end that it has been, or
	// failed; nil = nothing is.
	edit func(at, i, n uint64) (end func(error))
	// unshared: views are not to be touched, nor waited for. ErrView.
	unshared bool

	leave func() // of what was entered to wait for the host; nil = nothing yet
}

// touch checks size bytes at addr and runs f on them while the pages are held, once for each part of an allocation that they
// lie in: f gets the address, and the place and number of bytes.
func (p *Process) touch(k Kind, addr, size uint64, f func(r part, at, i, n uint64) error) error {
	return p.access(&access{kind: k, addr: addr, size: size, do: f})
}

// access checks all of an access, and then does it stretch by stretch: where it crosses the border of a view there is a moment
// at which somebody else can change what has been checked, and the rest faults.
func (p *Process) access(a *access) error {
	if a.size == 0 {
		return nil
	}
	p.survey()
	err := p.foresee(a)
	for done := uint64(0); err == nil && done < a.size; {
		var n uint64
		n, err = p.accessStretch(a, done)
		done += n
	}
	if a.leave != nil {
		a.leave()
	}
	return err
}

// foresee checks an access of more than one stretch as a whole, and enters for it if it may have to wait for the host.
func (p *Process) foresee(a *access) error {
	first, last := span(a.addr, a.size)
	for {
		p.mu.Lock()
		_, end := p.stretch(first, last)
		views, waits := p.viewsAmong(first, last)
		var stack uint64
		var err error
		if end < last && !(a.unshared && views) {
			stack, err = p.check(a.kind, a.addr, first, last)
		}
		p.mu.Unlock()
		switch {
		case a.unshared && views:
			return ErrView
		case err != nil:
			return err
		case stack != 0:
			if err := p.growStack(stack, a.kind, a.addr); err != nil {
				return err
			}
		case waits:
			return p.entered(a)
		default:
			return nil
		}
	}
}

// viewsAmong says whether one of the pages is a view's, and whether an access to one may have to wait for the host.
// +checklocks:p.mu
func (p *Process) viewsAmong(first, last uint64) (any, waits bool) {
	for i := p.after(first); i < len(p.vads) && p.vads[i].first <= last; i++ {
		if w := p.vads[i].view; w != nil {
			any, waits = true, waits || w.waits()
		}
	}
	return any, waits
}

// entered sees that an access has been let through to wait for the host.
func (p *Process) entered(a *access) (err error) {
	if a.leave == nil {
		a.leave, err = p.machine.enter()
	}
	return err
}

// accessStretch does the part of an access that lies in one stretch, from byte done on, and says how many bytes that is.
func (p *Process) accessStretch(a *access, done uint64) (n uint64, err error) {
	for {
		var stack uint64
		n, err = p.inStretch(a, done, func(v *vad, w *Window, n uint64) (again bool, err error) {
			again, stack, err = p.accessHeld(a, v, w, done, n)
			return again, err
		})
		if stack == 0 {
			return n, err
		}
		if err := p.growStack(stack, a.kind, a.addr+done); err != nil {
			return 0, err
		}
	}
}

// inStretch has held do the part of an access that lies in one stretch, from byte done on: n bytes, of view v or of none, the
// host having been told through window w. It enters for what may have to wait for the host first, and begins anew if held says
// again. It says how many bytes that is.
func (p *Process) inStretch(a *access, done uint64, held func(v *vad, w *Window, n uint64) (again bool, err error)) (n uint64, err error) {
	at := a.addr + done
	first, last := span(at, a.size-done)
	for {
		p.mu.Lock()
		v, end := p.stretch(first, last)
		p.mu.Unlock()
		if n = a.size - done; end < last {
			n = (end+1)<<pageShift - at
		}
		finish, w := nothing, p.window.Load()
		switch {
		case v != nil && a.unshared:
			return 0, ErrView
		case v != nil && v.view.waits():
			if err := p.entered(a); err != nil {
				return 0, err
			}
		case v == nil && a.edit != nil && w != nil:
			finish = a.edit(at, done, n)
		}
		again, err := held(v, w, n)
		if again {
			err = errAgain
		}
		if finish(err); !again {
			return n, err
		}
	}
}

// accessHeld is the part of an access that lies in a stretch of view v, or of none, from byte done on: it holds the pages and
// checks them. again says that they are of v no more, or that the host has been told nothing through its window w; a page
// number in stack that the guard page of a stack was touched, which is to grow before the access is tried again.
func (p *Process) accessHeld(a *access, v *vad, w *Window, done, n uint64) (again bool, stack uint64, err error) {
	at := a.addr + done
	first, last := span(at, n)
	var h *hold
	p.mu.Lock()
	for exclusive := false; ; exclusive = true { // whoever copies a page has it alone
		h = p.acquire(first, last, exclusive)
		if now, end := p.stretch(first, last); now != v || end != last || a.edit != nil && p.window.Load() != w {
			again = true
			break
		}
		stack, err = p.check(a.kind, at, first, last)
		if exclusive || err != nil || stack != 0 || a.kind != Write || v == nil || !p.copiesAny(first, last) {
			break
		}
		p.release(h)
	}
	if again || err != nil || stack != 0 {
		p.release(h)
		p.mu.Unlock()
		return again, stack, err
	}
	p.mu.Unlock()
	err = p.copyHeld(at, n, func(r part, at, i, n uint64) error { return a.do(r, at, done+i, n) })
	if err != nil {
		err = p.inPage(err, a.kind, at, last)
	}
	p.finish(h, a.kind)
	return false, 0, err
}

// copiesAny says whether a store to pages, which has been checked, copies one.
// +checklocks:p.mu
func (p *Process) copiesAny(first, last uint64) bool {
	for page := first; page <= last; {
		r := p.partAt(page)
		if r.piece != nil && !r.copied && r.copies {
			return true
		}
		page = r.last + 1
	}
	return false
}

// finish ends an access: what was written is marked so.
func (p *Process) finish(h *hold, k Kind) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if k == Write {
		for page := h.first; page <= h.last; {
			v := p.find(page)
			if v == nil {
				break
			}
			v.watch.mark(page, min(h.last, v.last))
			page = v.last + 1
		}
	}
	p.release(h)
}

// check decides about an access in the order in which the processor and the memory manager do: what is not there, guard
// pages, then protection; page by page. stack is
// the page of a stack's guard that was touched.
// +checklocks:p.mu
func (p *Process) check(k Kind, addr, first, last uint64) (stack uint64, err error) {
	dep := p.dep.on
	kind := k
	if k == Fetch && !dep {
		kind = fetchNo
	}
	var cur *vad
	for page := first; page <= last; page++ {
		at := max(addr, page<<pageShift)
		if cur == nil || page > cur.last {
			cur = p.find(page)
		}
		if cur == nil || p.ended || p.regions != nil { // the kernel's memory is closed to programs
			return 0, &Exception{StatusAccessViolation, kind, at}
		}
		i := cur.runAt(page)
		a := cur.runs[i].attr
		if cur.physical {
			a = attr{committed: p.awe.mapped(page), protection: ReadWrite}
		}
		switch {
		case !a.committed || a.offered:
			return 0, &Exception{StatusAccessViolation, kind, at}
		case a.protection&Guard != 0:
			if p.stackOf(page) != nil {
				return page, nil
			}
			cur.set(page, page, func(a attr) attr { a.protection &^= Guard; return a })
			p.guards.Add(1)
			return 0, &Exception{StatusGuardPageViolation, k, at}
		case !a.protection.allows(k, dep):
			return 0, &Exception{StatusAccessViolation, kind, at}
		}
		if cur.physical {
			continue
		}
		end := min(last, cur.end(i)) // the rest of the run is alike
		if cur.view != nil {
			committed, to := cur.view.state(page, end)
			if !committed {
				return 0, &Exception{StatusAccessViolation, kind, at}
			}
			end = to
		}
		page = end
	}
	return 0, nil
}

// inPage is what an access is told when its pages, up to last, could not be had. They are held.
func (p *Process) inPage(err error, k Kind, addr, last uint64) error {
	if errors.Is(err, mm.StatusDeleted) {
		return &Exception{StatusAccessViolation, k, addr} // the process has ended meanwhile
	}
	var b [1]byte
	for page := addr >> pageShift; page < last; page++ {
		p.mu.Lock()
		r := p.partAt(page)
		p.mu.Unlock()
		if p.load(r, page<<pageShift, b[:]) != nil {
			return &Exception{StatusInPageError, k, max(addr, page<<pageShift)}
		}
	}
	return &Exception{StatusInPageError, k, max(addr, last<<pageShift)}
}

// sharedPage is the page at 0x7FFE0000, as far as it says anything about memory management.
func (p *Process) sharedPage() []byte {
	b := make([]byte, PageSize)
	binary.LittleEndian.PutUint32(b[0x26C:], 10) // NtMajorVersion
	b[0x274+12] = 1                              // ProcessorFeatures[PF_NX_ENABLED]
	b[0x2D5] = byte(p.machine.Policy())          // NXSupportPolicy
	return b
}
