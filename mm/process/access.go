package process

import (
	"encoding/binary"
	"errors"

	"memfs/mm"
)

// Read copies memory into buf, as loads do. The pages are checked in order before any is read, so that what faults has no
// effect but that of the exception: an *Exception, with the address of the first byte that could not be read.
func (p *Process) Read(addr uint64, buf []byte) error {
	p.fetch(addr, uint64(len(buf)))
	return p.read(addr, buf)
}

func (p *Process) read(addr uint64, buf []byte) error {
	return p.touch(Read, addr, uint64(len(buf)), func(r part, at, i, n uint64) error { return p.load(r, at, buf[i:i+n]) })
}

// Write copies data into memory, as stores do. Like Read, all or nothing.
func (p *Process) Write(addr uint64, data []byte) error {
	end := p.editing(addr, data)
	err := p.write(addr, data)
	end(err)
	return err
}

func (p *Process) write(addr uint64, data []byte) error {
	return p.touch(Write, addr, uint64(len(data)), func(r part, at, i, n uint64) error { return p.store(r, at, data[i:i+n]) })
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

// touch checks size bytes at addr and runs f on them while the pages are held, once for each part of an allocation that they
// lie in: f gets the address, and the place and number of bytes.
func (p *Process) touch(k Kind, addr, size uint64, f func(r part, at, i, n uint64) error) error {
	if size == 0 {
		return nil
	}
	p.survey()
	for {
		h, stack, err := p.begin(k, addr, size)
		switch {
		case err != nil:
			return err
		case stack != 0:
			if err := p.growStack(stack, k, addr); err != nil {
				return err
			}
			continue
		}
		if err = p.copyHeld(addr, size, f); err != nil {
			err = p.inPage(err, k, addr, h.last)
		}
		p.finish(h, k)
		return err
	}
}

// begin holds the pages of an access and checks them. A page number in stack says that the guard page of a stack was
// touched, and the stack is to grow before the access is tried again.
func (p *Process) begin(k Kind, addr, size uint64) (h *hold, stack uint64, err error) {
	first, last := addr>>pageShift, (addr+size-1)>>pageShift
	if last < first || addr+size-1 < addr {
		last = everything
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	h = p.acquire(first, last, false)
	stack, err = p.check(k, addr, first, last)
	if err == nil && stack == 0 && k == Write && p.copiesAny(first, last) { // whoever copies a page has it alone
		p.release(h)
		h = p.acquire(first, last, true)
		stack, err = p.check(k, addr, first, last)
	}
	if err != nil || stack != 0 {
		p.release(h)
	}
	return h, stack, err
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
