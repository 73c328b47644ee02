package process

import "slices"

// Thread is a thread, as far as memory management cares: its stack, which grows downwards a page at a time when its guard
// page is touched.
type Thread struct {
	ID     uint32
	Bottom uint64 // lowest address of the reservation
	Top    uint64 // first address above it
}

const defaultStack = 0x100000

// stackSize is what a stack reserves and commits at first, its guard page not counted: the program's sizes where size is 0.
// What commits more than it reserves gets whole MiB (RtlCreateUserStack).
func (i *Image) stackSize(size uint64) (reserve, commit uint64) {
	reserve, commit = size, i.StackCommit
	if reserve == 0 {
		reserve = i.StackReserve
	}
	if reserve == 0 {
		reserve = defaultStack
	}
	commit = max(commit+PageSize-1, PageSize) &^ (PageSize - 1)
	if commit+PageSize >= reserve {
		reserve = (commit + PageSize + 1<<20 - 1) &^ (1<<20 - 1)
	}
	return (reserve + Granularity - 1) &^ (Granularity - 1), commit
}

// NewThread makes a thread with a stack of size bytes reserved (0 = the program's, or 1 MiB) and the program's commit, or one
// page, above a guard page. Errors as Alloc; NotEnoughMemory if no address space is so large.
func (p *Process) NewThread(size uint64) (Thread, error) {
	if max(size, p.image.StackReserve, p.image.StackCommit) > p.high {
		return Thread{}, NotEnoughMemory
	}
	size, commit := p.image.stackSize(size)
	bottom, err := p.Alloc(0, size, MemReserve, ReadWrite)
	if err != nil {
		return Thread{}, err
	}
	top := bottom + size
	if _, err := p.Alloc(top-commit-PageSize, PageSize, MemCommit, ReadWrite|Guard); err != nil {
		return Thread{}, p.undo(bottom, err)
	}
	if _, err := p.Alloc(top-commit, commit, MemCommit, ReadWrite); err != nil {
		return Thread{}, p.undo(bottom, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastThread++
	t := &Thread{ID: p.id + 4*p.lastThread, Bottom: bottom, Top: top}
	p.threads = append(p.threads, t)
	if v := p.find(bottom >> pageShift); v != nil {
		v.use = "stack"
	}
	return *t, nil
}

func (p *Process) undo(base uint64, err error) error {
	_ = p.Free(base, 0, MemRelease)
	return err
}

// EndThread ends a thread and frees its stack. InvalidHandle if there is no such thread.
func (p *Process) EndThread(id uint32) error {
	p.mu.Lock()
	i := slices.IndexFunc(p.threads, func(t *Thread) bool { return t.ID == id })
	if i < 0 {
		p.mu.Unlock()
		return InvalidHandle
	}
	bottom := p.threads[i].Bottom
	p.threads = slices.Delete(p.threads, i, i+1)
	p.mu.Unlock()
	p.forgetThread(id)
	return p.Free(bottom, 0, MemRelease)
}

// Threads lists the threads.
func (p *Process) Threads() (threads []Thread) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.threads {
		threads = append(threads, *t)
	}
	return threads
}

// stackOf is the thread whose stack a page belongs to. What has taken the place of a stack that was freed is none.
// +checklocks:p.mu
func (p *Process) stackOf(page uint64) *Thread {
	v := p.find(page)
	for _, t := range p.threads {
		if v != nil && v.first == t.Bottom>>pageShift && v.last == t.Top>>pageShift-1 {
			return t
		}
	}
	return nil
}

// growStack moves the guard page of a stack, which was touched, one page down. When it has reached the last but one page,
// or nothing can be committed, the stack has overflowed: the guard is gone and the program is told
// (MiCheckForUserStackOverflow).
func (p *Process) growStack(page uint64, k Kind, addr uint64) error {
	c, err := p.change(nil, page-1, page)
	defer p.done(c)
	if err != nil {
		return err
	}
	v, t := p.find(page), p.stackOf(page)
	if v == nil || t == nil || v.at(page).protection&Guard == 0 {
		return nil // somebody else was faster; look again
	}
	unguard := func(a attr) attr { a.protection &^= Guard; return a }
	if page-1 <= t.Bottom>>pageShift || p.commitPages(v, page-1, page-1, ReadWrite|Guard) != nil {
		v.set(page, page, unguard)
		return &Exception{StatusStackOverflow, k, max(addr, page<<pageShift)}
	}
	v.set(page, page, unguard)
	return nil
}
