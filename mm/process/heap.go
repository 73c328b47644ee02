package process

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"memfs/mm/heap"
)

// The heaps of a process: package heap over the process's own VirtualAlloc, so that what a heap is made of are pages like
// any others, which fault, page out, and do not execute.

// processHeaps is what a process has of package heap. Its lock is taken before Process.mu, and held while the default heap
// is made, which may fault.
type processHeaps struct {
	mu sync.Mutex
	// +checklocks:mu
	all *heap.Heaps // nil = not made yet
	// +checklocks:mu
	threads map[uint32]*heap.Thread // by number; 0 is the main thread
	// ended ends all waits for a HeapLock.
	ended  context.Context
	cancel context.CancelCauseFunc
}

// lockTimeout is how long a call waits for a heap that another thread has locked. NT's is thirty days, after which
// RtlEnterCriticalSection raises the same exception.
const lockTimeout = 250 * time.Millisecond

// StatusPossibleDeadlock is raised by whoever has waited too long.
const StatusPossibleDeadlock uint32 = 0xC0000194

// ErrDeadlock is how a heap call ends that has waited for a HeapLock in vain.
var ErrDeadlock = errors.New("the heap is locked by another thread")

// What a process's heaps cost in records, besides their pages: the table of heaps at all, and each of them.
const (
	heapsBytes = 512
	heapBytes  = 512
)

// defaultHeapBase is where the default heap goes if there is room: out of the way of programs that ask for addresses, and
// of first-fit allocations.
func (a Arch) defaultHeapBase() uint64 {
	if a == X86 {
		return 0x01D0_0000
	}
	return 0x1D0_0000_0000
}

// Heaps are the process's heaps. The default heap is made at the first call, with the reserve and the commit of the image;
// CommitmentLimit if it cannot be had.
func (p *Process) Heaps() (*heap.Heaps, error) {
	p.heaps.mu.Lock()
	defer p.heaps.mu.Unlock()
	if p.heaps.all != nil {
		return p.heaps.all, nil
	}
	if err := p.chargeHeaps(heapsBytes + heapBytes); err != nil {
		return nil, err
	}
	i := p.image
	all, err := heap.New(&heapSpace{p: p, base: i.Arch.defaultHeapBase()}, heap.Options{
		Reserve: i.HeapReserve, Commit: i.HeapCommit, GlobalFlags: i.GlobalFlags, TerminateOnCorruption: i.TerminateOnCorruption,
	})
	if err != nil {
		p.releaseHeaps(heapsBytes + heapBytes)
		return nil, err
	}
	p.heaps.all = all
	p.heaps.threads = map[uint32]*heap.Thread{0: all.Thread(context.Background())}
	return all, nil
}

// HeapView is the heaps as somebody sees them from outside, who makes no calls of the process's: nil if it has none.
func (p *Process) HeapView() (*heap.Heaps, *heap.Thread) {
	p.heaps.mu.Lock()
	defer p.heaps.mu.Unlock()
	if p.heaps.all == nil || p.Ended() {
		return nil, nil
	}
	return p.heaps.all, p.heaps.all.Thread(p.heaps.ended)
}

// HeapThread is one of the process's threads as a caller of heap functions: 0 is the main thread, others are NewThread's.
// Its waits end after a quarter of a second with ErrDeadlock, and when the process ends. The caller calls done when its call is.
// InvalidHandle if there is no such thread.
func (p *Process) HeapThread(id uint32) (t *heap.Thread, done func(), err error) {
	if _, err := p.Heaps(); err != nil {
		return nil, nil, err
	}
	if id != 0 && !p.hasThread(id) {
		return nil, nil, InvalidHandle
	}
	ctx, done := context.WithTimeoutCause(p.heaps.ended, lockTimeout, ErrDeadlock)
	p.heaps.mu.Lock()
	defer p.heaps.mu.Unlock()
	t = p.heaps.threads[id]
	if t == nil {
		t = p.heaps.all.Thread(context.Background())
		p.heaps.threads[id] = t
	}
	return t.With(ctx), done, nil
}

func (p *Process) hasThread(id uint32) bool {
	for _, t := range p.Threads() {
		if t.ID == id {
			return true
		}
	}
	return false
}

// forgetThread drops the heaps' idea of a thread that has ended. What it has locked stays locked, as on Windows.
func (p *Process) forgetThread(id uint32) {
	p.heaps.mu.Lock()
	defer p.heaps.mu.Unlock()
	delete(p.heaps.threads, id)
}

// HeapCreate is HeapCreate by a thread of HeapThread.
func (p *Process) HeapCreate(t *heap.Thread, flags uint32, initial, maximum uint64) (uint64, error) {
	if err := p.chargeHeaps(heapBytes); err != nil {
		return 0, err
	}
	handle, err := t.HeapCreate(flags, initial, maximum)
	if err != nil {
		p.releaseHeaps(heapBytes)
	}
	return handle, err
}

// HeapDestroy is HeapDestroy by a thread of HeapThread.
func (p *Process) HeapDestroy(t *heap.Thread, handle uint64) (bool, error) {
	ok, err := t.HeapDestroy(handle)
	var x *heap.Exception
	if ok || errors.As(err, &x) { // a damaged one goes too
		p.releaseHeaps(heapBytes)
	}
	return ok, err
}

// chargeHeaps charges records of heaps; NotEnoughMemory if they do not fit.
func (p *Process) chargeHeaps(bytes int) error {
	if err := p.machine.sys.ChargeRecord(bytes); err != nil {
		return NotEnoughMemory
	}
	p.mu.Lock()
	ended := p.ended
	if !ended {
		p.bitmaps += bytes
		p.recorded += bytes
	}
	p.mu.Unlock()
	if ended {
		p.machine.sys.ReleaseRecord(bytes)
		return AccessDenied
	}
	return nil
}

// releaseHeaps undoes chargeHeaps.
func (p *Process) releaseHeaps(bytes int) {
	p.mu.Lock()
	ended := p.ended
	if !ended {
		p.bitmaps -= bytes
		p.recorded -= bytes
	}
	p.mu.Unlock()
	if !ended {
		p.machine.sys.ReleaseRecord(bytes)
	}
}

// Terminate ends the process by itself, as when its heap is damaged: all its memory goes back. Status is what it says of
// why.
func (p *Process) Terminate(status uint32) {
	p.exit.CompareAndSwap(0, status)
	p.machine.End(p)
}

// ExitStatus is what the process has terminated itself with, 0 if it has not.
func (p *Process) ExitStatus() uint32 { return p.exit.Load() }

// Ended says that the process has ended: it has no memory any more, and every call fails.
func (p *Process) Ended() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended
}

// heapSpace is a process's address space as its heaps see it.
type heapSpace struct {
	p *Process

	mu sync.Mutex
	// +checklocks:mu
	base uint64 // where the next reservation is tried first; 0 = anywhere
}

func (s *heapSpace) PointerSize() int { return s.p.image.Arch.Pointer() }
func (s *heapSpace) PageSize() int    { return PageSize }

func (s *heapSpace) Reserve(size uint64, protect uint32) (uint64, error) {
	s.mu.Lock()
	at := s.base
	s.base = 0
	s.mu.Unlock()
	if at != 0 {
		if base, err := s.p.Alloc(at, size, MemReserve, Protection(protect)); err == nil {
			return base, nil
		}
	}
	return s.p.Alloc(0, size, MemReserve, Protection(protect))
}

func (s *heapSpace) Commit(addr, size uint64, protect uint32) error {
	_, err := s.p.Alloc(addr, size, MemCommit, Protection(protect))
	return err
}

func (s *heapSpace) Decommit(addr, size uint64) error {
	return s.access(s.p.Free(addr, size, MemDecommit))
}

func (s *heapSpace) Release(base uint64) error { return s.access(s.p.Free(base, 0, MemRelease)) }

func (s *heapSpace) Read(addr uint64, b []byte) error { return s.access(s.p.Read(addr, b)) }

func (s *heapSpace) Write(addr uint64, b []byte) error { return s.access(s.p.Write(addr, b)) }

// access makes of the errors that a damaged heap comes by what package heap calls them; others, of the store, stay what
// they are.
func (s *heapSpace) access(err error) error {
	var x *Exception
	switch {
	case err == nil:
		return nil
	case s.p.Ended():
		return AccessDenied
	case errors.As(err, &x) && x.Code == StatusInPageError:
		return err
	}
	return fmt.Errorf("%w: %w", heap.ErrAccess, err)
}

// Label says in maps what a reservation is for.
func (s *heapSpace) Label(base uint64, what string) {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	if v := s.p.find(base >> pageShift); v != nil {
		v.use = what
	}
}
