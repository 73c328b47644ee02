// Package process is simulated processes: virtual address spaces with the exact semantics of the Win32 memory API. A
// process has a tree of virtual address descriptors (vad.go), each with the protection of its pages; the pages themselves
// are an mm.Space, so that they compete with files' pages for the same frames. Views (view.go) show pages of sections
// (section.go), which a process has by handles (object.go); files come from whoever implements Files (file.go). Nothing is
// executed: programs are whoever calls the methods, which are named after the Win32 calls without Virtual or Process, and
// return an Error or, where memory is touched, an *Exception.
//
// # Locks
//
// Process.mu guards everything about one process and is never held across I/O. An access holds its pages (see hold) while
// it copies and faults; a call that changes pages holds them exclusively. So a change of protection takes effect when
// every access that began before it has ended, as after a TLB shoot-down, and nobody waits behind a page that he has no
// business with. Machine.mu is taken before no other lock. The locks of handles and objects come after Process.mu, and nothing
// comes after them.
//
// # Waiting for the host
//
// An access to a view of a file waits for the host, with the view's pages held. What the host has to send meanwhile may have
// to wait itself until READs and WRITEs of other pages of the process have been answered: only so many are under way at once.
// So these never wait for a view:
//
//   - A hold is of pages of one view, or of pages that are of no view (see stretch); whoever waits for one holds nothing else,
//     and has no edit of pages of private memory under way (see Window).
//   - Whoever waits for the host, or for pages of a view, has been let through (Machine.enter): fewer than there are requests.
//   - Handlers of READ and WRITE that have not passed a gate of the filesystem's keep away from views altogether.
package process

import (
	"context"
	"sync"
	"sync/atomic"

	"memfs/mm"
)

// Image is what a process runs, as far as memory management cares.
type Image struct {
	Name string // of the program, for the opt-in and opt-out lists
	Arch Arch
	// LargeAddressAware gives an x86 process 4 GiB instead of 2.
	LargeAddressAware bool
	// Below2GiB is a 64-bit program that is not large-address-aware.
	Below2GiB  bool
	NXCompat   bool // linked with /NXCOMPAT
	System     bool // a binary of the system: DEP is on under OptIn
	LockMemory bool // holds SeLockMemoryPrivilege
	DEPFixed   bool // its DEP state was set at creation and cannot change
	DEP        InitialDEP
	Limits     Limits

	// Executable is the path of the file that it runs, for StartProgram; empty = none.
	Executable string
	// StackReserve and StackCommit are a thread's that does not say, in bytes; 0 = 1 MiB, 4 KiB.
	StackReserve, StackCommit uint64
	// HeapReserve and HeapCommit are the default heap's, in bytes (SizeOfHeapReserve, SizeOfHeapCommit); 0 = 1 MiB, 4 KiB.
	HeapReserve, HeapCommit uint64
	// GlobalFlags are the checks of heaps that gflags sets; package heap has them.
	GlobalFlags uint32
	// TerminateOnCorruption is HeapEnableTerminationOnCorruption from the start.
	TerminateOnCorruption bool
}

// Limits are a process's quotas in bytes; 0 is none.
type Limits struct {
	Commit  uint64
	Virtual uint64
}

// Process is one simulated process. Its methods may be called at once from several goroutines.
type Process struct {
	machine   *Machine
	id        uint32
	image     Image
	space     *mm.Space
	low, high uint64 // user addresses, inclusive

	mu   sync.Mutex
	turn sync.Cond // a hold has ended
	// +checklocks:mu
	holds []*hold // in order of arrival
	// +checklocks:mu
	vads []*vad // ascending, not overlapping
	// +checklocks:mu
	virtual uint64 // pages in vads
	// +checklocks:mu
	virtualPeak uint64
	// +checklocks:mu
	commitPeak uint64
	// +checklocks:mu
	committing uint64 // pages being committed just now; may count in the space already
	// +checklocks:mu
	recorded int // bytes of records charged
	// +checklocks:mu
	bitmaps int // of which for write watches and heaps
	// +checklocks:mu
	ended bool
	// +checklocks:mu
	dep depState
	// +checklocks:mu
	ws wsLimits
	// +checklocks:mu
	large uint64 // pages of large pages
	// +checklocks:mu
	threads []*Thread
	// +checklocks:mu
	lastThread uint32 // how many threads there ever were
	// +checklocks:mu
	awe *physicalPages // AllocateUserPhysicalPages; nil = none

	// viewing is held while a view of a file is mapped, and shared by calls that are not to meet one. It comes before mu.
	viewing sync.RWMutex

	regions func() []SystemRegion // of the system process; nil = of another one

	handles handleTable
	heaps   processHeaps

	exit       atomic.Uint32 // what Terminate said
	program    atomic.Pointer[Program]
	window     atomic.Pointer[Window] // nil until the host may map the address space
	lastError  atomic.Uint32
	violations atomic.Uint64 // of DEP
	guards     atomic.Uint64 // guard page exceptions
}

// hold is pages in use: by accesses together, or by a call that changes them alone. Holds are granted in order of arrival,
// so that nobody waits forever.
type hold struct {
	first, last uint64
	exclusive   bool
	granted     bool
}

func (h *hold) conflicts(o *hold) bool {
	return (h.exclusive || o.exclusive) && h.first <= o.last && o.first <= h.last
}

// everything is the last page of any address space.
const everything = 1<<52 - 1

// noPages and physicalPage are no pages, but can be held as if they were: the place of a new allocation before it is known, and
// the physical pages of AllocateUserPhysicalPages.
const (
	noPages      = everything + 1
	physicalPage = everything + 2
)

// acquire waits until pages can be held. It gives p.mu up while it waits: what was known before is known no more. Of a process
// that has ended nothing can be held any more, nor is there a need to: the caller sees that it has ended.
// +checklocks:p.mu
func (p *Process) acquire(first, last uint64, exclusive bool) *hold {
	h := &hold{first: first, last: last, exclusive: exclusive}
	if p.ended {
		return h
	}
	return p.await(h)
}

// +checklocks:p.mu
func (p *Process) await(h *hold) *hold {
	p.holds = append(p.holds, h)
	for !p.grantable(h) {
		p.turn.Wait()
	}
	h.granted = true
	return h
}

// grantable says whether nobody who came before h, or holds pages already, stands in its way: a new allocation's pages are
// held by whoever made it, ahead of those who wait.
// +checklocks:p.mu
func (p *Process) grantable(h *hold) bool {
	before := true
	for _, o := range p.holds {
		if o == h {
			before = false
		} else if (before || o.granted) && h.conflicts(o) {
			return false
		}
	}
	return true
}

// stretch is how many of the pages from first up to last can be held at once: up to end they are all of the view v, or with nil
// of none.
// +checklocks:p.mu
func (p *Process) stretch(first, last uint64) (v *vad, end uint64) {
	for i := p.after(first); i < len(p.vads) && p.vads[i].first <= last; i++ {
		switch w := p.vads[i]; {
		case w.view == nil:
		case w.first <= first:
			return w, min(last, w.last)
		default:
			return nil, w.first - 1
		}
	}
	return nil, last
}

// acquireStretch is acquire of the first stretch of a range.
// +checklocks:p.mu
func (p *Process) acquireStretch(first, last uint64, exclusive bool) (h *hold, v *vad) {
	for {
		v, end := p.stretch(first, last)
		h := p.acquire(first, end, exclusive)
		if now, to := p.stretch(first, end); now == v && to == end {
			return h, v
		}
		p.release(h)
	}
}

// +checklocks:p.mu
func (p *Process) release(h *hold) {
	for i, o := range p.holds {
		if o == h {
			p.holds = append(p.holds[:i], p.holds[i+1:]...)
			break
		}
	}
	p.turn.Broadcast()
}

// highest is the highest user address of an image, inclusive.
func highest(i Image) uint64 {
	switch {
	case i.Arch == X86 && i.LargeAddressAware:
		return 0xFFFEFFFF
	case i.Arch == X86, i.Below2GiB:
		return 0x7FFEFFFF
	}
	return 0x7FFFFFFEFFFF
}

// sharedData is the address of the page of the system's that every process can read (KUSER_SHARED_DATA).
const sharedData = 0x7FFE0000

// processBytes is what a process costs in records before it allocates anything.
const processBytes = 1024

func (m *Machine) newProcess(id uint32, i Image) (*Process, error) {
	if err := m.sys.ChargeRecord(processBytes); err != nil {
		return nil, win32(err)
	}
	p := &Process{machine: m, id: id, image: i, low: Granularity, high: highest(i)}
	p.turn.L = &p.mu
	p.heaps.ended, p.heaps.cancel = context.WithCancelCause(context.Background())
	p.space = m.sys.NewSpace()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.recorded = processBytes
	p.dep = m.initialDEP(i)
	p.ws = defaultLimits()
	p.applyLimits()
	v := newVAD(sharedData>>pageShift, sharedData>>pageShift, ReadOnly)
	v.system, v.use = true, "KUSER_SHARED_DATA"
	v.runs[0].attr = attr{committed: true, protection: ReadOnly}
	p.insert(v)
	return p, nil
}

// ID is the number that the process has in its machine.
func (p *Process) ID() uint32 { return p.id }

// Image is what the process runs.
func (p *Process) Image() Image { return p.image }

// LastError is what the last call that failed, or SetLastError, left.
func (p *Process) LastError() Error { return Error(p.lastError.Load()) }

// SetLastError sets what LastError says.
func (p *Process) SetLastError(e Error) { p.lastError.Store(uint32(e)) }

// Lowest and Highest are the bounds of the user address space, inclusive.
func (p *Process) Lowest() uint64 { return p.low }

// Highest is the highest user address, inclusive.
func (p *Process) Highest() uint64 { return p.high }

// end gives everything back. It waits for accesses and calls under way.
func (p *Process) end() {
	p.heaps.cancel(AccessDenied)
	p.mu.Lock()
	p.ended = true
	h := p.await(&hold{last: physicalPage, exclusive: true})
	var views []*vad
	for _, v := range p.vads {
		if v.view != nil {
			p.unfill(v)
			views = append(views, v)
		}
	}
	p.vads, p.virtual = nil, 0
	n, awe := p.recorded, p.awe
	p.recorded, p.awe = 0, nil
	p.mu.Unlock()
	p.space.Delete()
	if awe != nil {
		awe.space.Delete()
	}
	p.machine.sys.ReleaseRecord(n)
	p.closeHandles()
	for _, v := range views {
		p.machine.countView(v.view.section, -1)
		p.machine.dereference(v.view.section, false)
	}
	p.mu.Lock()
	p.release(h)
	p.mu.Unlock()
}

// change begins a call that may change pages first..last and adds up to two runs and one vad: their records are charged
// beforehand, so that the call cannot fail half-way. It returns with p.mu and the hold held; done ends both. Where the range
// crosses the border of a view only the pages before it are held: no call changes both. r is what the call has said to the host
// of it, nil = nothing.
// +checklocksacquire:p.mu
func (p *Process) change(r *revocation, first, last uint64) (*changing, error) {
	return p.changeWhere(r, place{first, last, false})
}

// changeAllocation is change of the allocation that a page lies in, if there is one.
// +checklocksacquire:p.mu
func (p *Process) changeAllocation(r *revocation, page uint64) (*changing, error) {
	return p.changeWhere(r, place{page, page, true})
}

// place is what a call changes: a range, or the allocation of a page.
type place struct {
	first, last uint64
	allocation  bool
}

// stretchOf is the pages to be held for a change, and whose view they are.
// +checklocks:p.mu
func (p *Process) stretchOf(w place) (first, last uint64, v *vad) {
	if !w.allocation {
		v, last = p.stretch(w.first, w.last)
		return w.first, last, v
	}
	switch v = p.find(w.first); {
	case v == nil:
		return noPages, noPages, nil
	case v.view == nil:
		return v.first, v.last, nil
	}
	return v.first, v.last, v
}

// changeWhere is change of a place. errAgain: it is not what r was about.
// +checklocksacquire:p.mu
func (p *Process) changeWhere(r *revocation, where place) (*changing, error) {
	const most = vadBytes + 4*runBytes
	if err := p.machine.sys.ChargeRecord(most); err != nil {
		p.mu.Lock()
		return nil, win32(err)
	}
	c := &changing{charged: most}
	p.mu.Lock()
	for {
		lo, hi, v := p.stretchOf(where)
		if v != nil && v.view.waits() && c.leave == nil {
			p.mu.Unlock()
			leave, err := p.machine.enter()
			p.mu.Lock()
			if err != nil {
				return c, err
			}
			c.leave = leave
			continue
		}
		c.hold = p.acquire(lo, hi, true)
		if p.ended {
			return c, AccessDenied
		}
		if first, last, now := p.stretchOf(where); now == v && first == lo && last == hi {
			if !r.covers(p, v) {
				return c, errAgain
			}
			return c, nil
		}
		p.release(c.hold)
		c.hold = nil
	}
}

// changing is a call that changes an address space.
type changing struct {
	charged int
	hold    *hold
	leave   func() // nil = it waits for nobody
}

// done ends a change.
// +checklocksrelease:p.mu
func (p *Process) done(c *changing) {
	over := 0
	if c != nil {
		over = c.charged - p.settle(c.charged)
		p.release(c.hold)
	}
	p.mu.Unlock()
	if c != nil && c.leave != nil {
		c.leave()
	}
	if over > 0 {
		p.machine.sys.ReleaseRecord(over)
	}
}

// settle brings what is charged for records up to what there are, with at most have bytes charged beforehand, and says how
// much of that it took; less than nothing if records went.
// +checklocks:p.mu
func (p *Process) settle(have int) int {
	if p.ended {
		return 0
	}
	want := processBytes + p.bitmaps
	for _, v := range p.vads {
		want += vadBytes + len(v.runs)*runBytes
	}
	took := min(want-p.recorded, have)
	p.recorded += took
	return took
}

// unlocked runs I/O without p.mu; the pages stay held.
// +checklocks:p.mu
func (p *Process) unlocked(f func() error) error {
	p.mu.Unlock()
	defer p.mu.Lock()
	return f()
}
