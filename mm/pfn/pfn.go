// Package pfn is the physical layer: a fixed arena of page frames, the PFN database that says of each what it is used
// for, and the page lists. It is the only owner of a frame's state: the entries are private, and every change of state
// goes through the table in state.go. It knows neither prototype-PTE formats nor stores: a frame remembers whose page
// it holds as an opaque owner, and the word to give back to that owner when it is taken away ("original", as NT's
// OriginalPte).
//
// The database has one lock, the PFN lock. The methods marked so want it held; callers batch several under one hold.
// It is taken after a segment's lock; only the slot bitmap's, commit's and a slab's own locks are taken inside it.
// No I/O happens under it.
//
// What happens most, a soft fault and the end of a pin, takes one part of it only (lock.go). A frame belongs to the part that it
// was allocated for, and so does the list that it is on if it is Standby, Modified or ModifiedNoWrite. With its part alone
// it can be pinned, go from these lists to Active, and be unpinned as long as nothing follows from that (part.go). All else,
// and whatever puts a frame on a list, takes the whole lock; so the order in which frames came to their lists is one
// count, and the oldest of all parts is found by it.
package pfn

import (
	"fmt"
	"math"
	"unsafe"

	"memfs/mm/offheap"
)

const (
	// PageSize is the size of a frame in bytes.
	PageSize = 4096
	// Priorities is the number of standby lists; 7 is repurposed last.
	Priorities = 8
	// DefaultPriority is what pages have that nobody set a priority for (Windows' normal memory priority).
	DefaultPriority = 5
	// EntrySize is what one frame costs in the database, in bytes.
	EntrySize = uint64(unsafe.Sizeof(entry{}))
)

// flag bits of an entry.
const (
	dirty    = 1 << iota // holds bytes that no store has
	writing              // the page writer has it under way
	deleting             // its page is gone; free it when the last reference goes
	record               // taken over by the manager's records
	ahead                // read ahead of its first touch
	keep                 // its page must not leave memory: it is dirty for as long as this is set
	lock                 // nor its working set
	offer                // its page, which no store has, may be lost
)

// entry is one frame's record. No Go pointers: entries lie outside the Go heap.
type entry struct {
	next, prev Frame
	owner      uint64 // whose page, in the owner's own terms; 0 = nobody's
	original   uint64 // what the owner's PTE becomes when the frame is taken away
	when       uint64 // it came to its list: a value of Database.clock
	refs       uint32 // pins and I/O under way
	shares     uint32 // PTEs of processes that map the page of a file; 0 of a private page
	state      State
	priority   uint8
	flags      uint8
	why        Event // brought it into its state
	part       Part  // whose lists it waits on; changes under the whole lock
}

// Database is the arena and its entries.
type Database struct {
	arena   []byte
	mem     []byte  // of the entries
	entries []entry // +checklocksignore: one is guarded by its part of the lock

	mu partRWMutex
	// +checklocks:mu
	parts [Parts]part
	// +checklocks:mu
	restore func(owner, original uint64, why Departure)
	// +checklocks:mu
	moved func(owner uint64, to Frame)
	// +checklocks:mu
	freed func()
	// +checklocks:mu
	zeroed list
	// +checklocks:mu
	free list
	// +checklocks:mu
	bad list
	// +checklocks:mu
	transition uint64
	// +checklocks:mu
	retired uint64 // of frames 1..top
	// +checklocks:mu
	records list // Active frames that the manager's records took over
	// +checklocks:mu
	limit Frame // frames beyond are on their way out of use
	// +checklocks:mu
	top Frame // frames beyond are Retired, and their entries are zeros
	// +checklocks:mu
	repurposed [Priorities]uint64
	// +checklocks:mu
	departed [numDepartures]uint64
	// +checklocks:mu
	hand Frame // where the next search for a clean Active frame starts
	// +checklocks:mu
	clock uint64 // ticks of Tick, and in the low tickShift bits a count of what came to a list since
	// +checklocks:mu
	wipe bool // frames are zeroed when they become free
}

// Owner is what the database tells the owner of a page. Its functions are called with the PFN lock held.
type Owner struct {
	// Restore must put original back into the owner's PTE, whose Standby or clean Active frame is taken away; why says for
	// what.
	Restore func(owner, original uint64, why Departure)
	// Moved must put another frame into the owner's PTE: the page is there now, in the same state.
	Moved func(owner uint64, to Frame)
	// Freed is told when a frame becomes Free and none was. It may be nil.
	Freed func()
}

// New makes a database of n frames, all Zeroed (the host gives zeroed memory), that can grow to most. What it may grow
// by is address space only.
func New(n, most uint64, o Owner) (*Database, error) {
	most = max(n, most)
	if most >= math.MaxUint32 {
		return nil, fmt.Errorf("%d frames are more than there are numbers for", most)
	}
	arena, err := offheap.Map(int(most+1) * PageSize)
	if err != nil {
		return nil, err
	}
	mem, err := offheap.Map(int((most + 1) * EntrySize))
	if err != nil {
		_ = offheap.Unmap(arena)
		return nil, err
	}
	d := &Database{arena: arena, mem: mem, entries: offheap.Of[entry](mem)[:most+1], hand: 1}
	d.mu.Lock()
	d.restore, d.moved, d.freed = o.Restore, o.Moved, o.Freed
	d.SetLimit(n)
	for f := Frame(1); f <= Frame(n); f++ {
		d.apply(f, Enlist)
	}
	d.mu.Unlock()
	return d, nil
}

// SetWipe has frames zeroed when they become free, before anything else is done with them.
func (d *Database) SetWipe() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wipe = true
}

// Close gives arena and entries back to the host. Nothing may use a frame afterwards.
func (d *Database) Close() error {
	if err := offheap.Unmap(d.arena); err != nil {
		return err
	}
	return offheap.Unmap(d.mem)
}

// Lock takes the PFN lock.
// +checklocksacquire:d.mu
func (d *Database) Lock() { d.mu.Lock() }

// Unlock releases the PFN lock.
// +checklocksrelease:d.mu
func (d *Database) Unlock() { d.mu.Unlock() }

// LockPart takes one part of the PFN lock at least: who holds it must not take another, nor all of it.
// +checklocksacquireread:d.mu
func (d *Database) LockPart(p Part) Hold { return d.mu.RLock(p) }

// UnlockPart releases what LockPart took.
// +checklocksreleaseread:d.mu
func (d *Database) UnlockPart(h Hold) { d.mu.RUnlock(h) }

// Frames is the number of frames in use: all but the Retired ones.
// +checklocks:d.mu
func (d *Database) Frames() uint64 { return uint64(d.top) - d.retired }

// Top is the highest number that a frame in use may have.
// +checklocks:d.mu
func (d *Database) Top() Frame { return d.top }

// Most is how many frames there can be.
func (d *Database) Most() uint64 { return uint64(len(d.entries) - 1) }

// Bytes is frame f's memory. The caller holds a pin on f, or the lock that keeps its owner's PTE valid.
func (d *Database) Bytes(f Frame) []byte {
	o := int(f) * PageSize
	return d.arena[o : o+PageSize : o+PageSize]
}

// apply moves f from its state to the next one as the table says, and from list to list with it.
// Preconditions: the PFN lock is held.
// +checklocks:d.mu
func (d *Database) apply(f Frame, ev Event) {
	e := &d.entries[f]
	next := e.after(f, ev)
	switch e.state {
	case Active:
		d.parts[e.part].active--
	case Transition:
		d.transition--
	case Retired:
		d.retired--
	case Zeroed, Free, Bad:
		d.remove(d.listOf(e), f)
	default:
		d.leave(f)
	}
	e.state, e.why = next, ev
	switch next {
	case Active:
		d.parts[e.part].active++
	case Transition:
		d.transition++
	case Retired:
		d.retired++
	case Standby:
		d.parts[e.part].standing++
		fallthrough
	default:
		d.push(d.listOf(e), f)
	}
}

// after is the state to which ev takes f, whose entry e is. It panics where the table has none.
func (e *entry) after(f Frame, ev Event) State {
	next, ok := Next(e.state, ev)
	if !ok {
		panic(fmt.Sprintf("pfn: frame %d: %v in state %v", f, ev, e.state))
	}
	return next
}

// Available is the number of frames that can be had without I/O.
// +checklocks:d.mu
func (d *Database) Available() uint64 {
	n := d.zeroed.count + d.free.count
	for i := range d.parts {
		n += d.parts[i].standing
	}
	return n
}

// Alloc takes a frame for owner, whose PTE will be given original when the frame is taken away again. The frame is in
// Transition with one reference, and belongs to part p of the lock. It comes from Zeroed or Free (in the order that zero asks for), else from the oldest
// page of the lowest standby priority, else a clean Active page gives up its frame. zeroed says whether it is filled
// with zeros. f is 0 if there is none, or if fewer than reserve would stay available.
// +checklocks:d.mu
func (d *Database) Alloc(p Part, owner, original uint64, zero bool, reserve uint64) (f Frame, zeroed bool) {
	if reserve > 0 && d.Available() <= reserve {
		return 0, false
	}
	// While the memory shrinks, frames that would come next but are to go retire instead. Not too many at once.
	const most = 64
	for range most {
		f, zeroed = d.take(zero)
		if f <= d.limit {
			break
		}
		d.entries[f].flags = 0
		d.apply(f, Retire)
		f = 0
	}
	if f == 0 {
		return 0, false
	}
	e := &d.entries[f]
	e.owner, e.original, e.refs, e.shares, e.flags, e.priority, e.part = owner, original, 1, 0, 0, DefaultPriority, p
	return f, zeroed
}

// take puts the next frame to be used into Transition, 0 if there is none.
// +checklocks:d.mu
func (d *Database) take(zero bool) (f Frame, zeroed bool) {
	first, second := &d.free, &d.zeroed
	if zero {
		first, second = second, first
	}
	switch {
	case first.head != 0:
		f = first.head
	case second.head != 0:
		f = second.head
	default:
		f = d.victim()
	}
	if f == 0 {
		return 0, false
	}
	e := &d.entries[f]
	zeroed = e.state == Zeroed
	switch e.state {
	case Active:
		d.giveBack(e, Stolen)
		d.apply(f, Steal)
	case Standby:
		d.repurposed[e.priority]++
		d.giveBack(e, Repurposed)
		d.apply(f, Allocate)
	default:
		d.apply(f, Allocate)
	}
	return f, zeroed
}

// giveBack restores the owner's PTE of a frame that is about to be taken. "Original" is a store's location here, for only
// pages that a store has are taken; or 0, of a page that was offered.
// +checklocks:d.mu
func (d *Database) giveBack(e *entry, why Departure) {
	d.departed[why]++
	d.restore(e.owner, e.original, why)
	e.owner, e.original = 0, 0
}

// victim finds the next frame to repurpose: the oldest on the lowest standby lists that are not empty, else a clean Active page
// that nobody pins. The search for the latter is bounded, so that a fault costs the same in an arena of any size.
// +checklocks:d.mu
func (d *Database) victim() Frame {
	if f := d.oldestStandby(0, Priorities-1); f != 0 {
		return f
	}
	const reach = 512
	for range min(reach, d.top) {
		f := d.hand
		if d.hand++; d.hand > d.top {
			d.hand = 1
		}
		if e := &d.entries[f]; e.state == Active && e.refs == 0 && e.shares == 0 && e.flags == 0 && e.original != 0 && e.owner != 0 {
			return f
		}
	}
	return 0
}

// Pin adds a reference: the frame keeps its page until Unpin.
// +checklocks:d.mu
func (d *Database) Pin(f Frame) { d.entries[f].refs++ }

// Unpin takes a reference away. With the last one a deleted page's frame becomes Free, and a frame in Transition
// settles on Standby or Modified.
// +checklocks:d.mu
func (d *Database) Unpin(f Frame) {
	e := &d.entries[f]
	if e.refs == 0 {
		panic(fmt.Sprintf("pfn: frame %d: unpinned too often", f))
	}
	e.refs--
	if e.refs > 0 {
		return
	}
	switch {
	case e.flags&deleting != 0:
		d.toFree(f)
	case e.state == Transition:
		d.settle(f)
	}
}

// +checklocks:d.mu
func (d *Database) settle(f Frame) {
	switch flags := d.entries[f].flags; {
	case flags&keep != 0:
		d.apply(f, SettleNoWrite)
	case flags&dirty != 0:
		d.apply(f, SettleDirty)
	default:
		d.apply(f, SettleClean)
	}
}

// MakeValid puts f into a working set: a soft fault, or the end of a hard or demand-zero fault. It reports whether this is
// the first touch of a page that was read ahead.
// +checklocks:d.mu
func (d *Database) MakeValid(f Frame) (hit bool) {
	e := &d.entries[f]
	if e.state != Active {
		d.apply(f, MakeValid)
	}
	hit = e.flags&ahead != 0
	e.flags &^= ahead
	touched(e)
	return hit
}

// ReadAhead ends the read of a page that nobody has asked for yet: it waits on Standby for its first touch.
// +checklocks:d.mu
func (d *Database) ReadAhead(f Frame) {
	d.entries[f].flags |= ahead
	d.Unpin(f)
}

// Trim takes f out of its working set: to Standby if its store has the bytes, to Modified if not, to ModifiedNoWrite if it
// must not leave memory, to Transition while it is pinned or being written.
// +checklocks:d.mu
func (d *Database) Trim(f Frame) {
	e := &d.entries[f]
	switch {
	case e.refs > 0:
		d.apply(f, TrimBusy)
	case e.flags&keep != 0:
		d.apply(f, TrimNoWrite)
	case e.flags&dirty != 0:
		d.apply(f, TrimDirty)
	default:
		d.apply(f, TrimClean)
	}
}

// Share notes that one more PTE maps f's page, which is in a working set. The frame stays until Unshare.
// +checklocks:d.mu
func (d *Database) Share(f Frame) {
	e := &d.entries[f]
	if e.state != Active {
		panic(fmt.Sprintf("pfn: frame %d: shared in state %v", f, e.state))
	}
	e.shares++
}

// Unshare undoes a Share, and says how many PTEs are left.
// +checklocks:d.mu
func (d *Database) Unshare(f Frame) (left uint32) {
	e := &d.entries[f]
	if e.shares == 0 {
		panic(fmt.Sprintf("pfn: frame %d: unshared too often", f))
	}
	e.shares--
	return e.shares
}

// Shares is how many PTEs of processes map f's page.
// +checklocks:d.mu
func (d *Database) Shares(f Frame) uint32 { return d.entries[f].shares }

// SetDirty notes that f's bytes changed. It returns the store location that no longer holds them (0 if none did), which
// is now the caller's to free.
// +checklocks:d.mu
func (d *Database) SetDirty(f Frame) (stale uint64) {
	e := &d.entries[f]
	e.flags = e.flags&^offer | dirty
	stale, e.original = e.original, 0
	return stale
}

// Divorce is SetDirty by somebody who changes nothing: no store is to have the bytes any more. A page on Standby is Modified
// from then on.
// +checklocks:d.mu
func (d *Database) Divorce(f Frame) (stale uint64) {
	stale = d.SetDirty(f)
	if d.entries[f].state == Standby {
		d.apply(f, MakeValid)
		d.apply(f, TrimDirty)
	}
	return stale
}

// Release frees f, whose page is deleted; the owner's PTE is the caller's business. A pinned frame, or one under I/O,
// becomes Free with its last reference. It returns the store location of its copy (0 if none), now the caller's to free.
// +checklocks:d.mu
func (d *Database) Release(f Frame) (stale uint64) {
	e := &d.entries[f]
	if e.shares > 0 {
		panic(fmt.Sprintf("pfn: frame %d: released while %d processes map it", f, e.shares))
	}
	stale = e.original
	e.original, e.owner = 0, 0
	e.flags &^= dirty
	if e.refs == 0 {
		d.toFree(f)
		return stale
	}
	e.flags |= deleting
	if e.state == Active {
		d.apply(f, TrimBusy)
	}
	return stale
}

// +checklocks:d.mu
func (d *Database) toFree(f Frame) {
	e := &d.entries[f]
	wipe := d.wipe && e.flags&record == 0 // a record frame's memory is the host's
	e.flags, e.owner, e.original, e.shares = 0, 0, 0, 0
	first := d.free.count == 0
	d.apply(f, Release)
	if wipe {
		clear(d.Bytes(f))
		d.apply(f, Allocate)
		d.apply(f, MadeZero)
	}
	if f > d.limit {
		d.apply(f, Retire)
	}
	if first && d.free.count > 0 && d.freed != nil {
		d.freed()
	}
}

// NextModified takes the oldest Modified frame for the page writer: it is in Transition, clean until somebody stores into
// it, with one reference. 0 if there is none, or none as old as olderThan ticks.
// +checklocks:d.mu
func (d *Database) NextModified(olderThan uint32) Frame {
	f := d.oldestModified()
	if f == 0 || d.clock>>tickShift-d.entries[f].when>>tickShift < uint64(olderThan) {
		return 0
	}
	d.beginWrite(f)
	return f
}

// TakeModified is NextModified for one frame of the caller's choice; false if it is not Modified.
// +checklocks:d.mu
func (d *Database) TakeModified(f Frame) bool {
	if d.entries[f].state != Modified {
		return false
	}
	d.beginWrite(f)
	return true
}

// +checklocks:d.mu
func (d *Database) beginWrite(f Frame) {
	e := &d.entries[f]
	d.apply(f, PageOut)
	e.flags = e.flags&^dirty | writing
	e.refs++
}

// EndWrite ends a page-out. location is where the bytes are now, 0 if the write failed. It returns false if the frame
// was stored into or deleted meanwhile, so that the location is worthless and the caller's to free.
// +checklocks:d.mu
func (d *Database) EndWrite(f Frame, location uint64) (kept bool) {
	e := &d.entries[f]
	e.flags &^= writing
	switch {
	case e.flags&deleting != 0:
	case location == 0:
		e.flags |= dirty
	case e.flags&dirty == 0:
		e.original = location
		kept = true
	}
	d.Unpin(f)
	return kept
}

// NextFree takes a Free frame for the zero-page thread, 0 if there is none.
// +checklocks:d.mu
func (d *Database) NextFree() Frame {
	f := d.free.head
	if f != 0 {
		d.apply(f, Allocate)
	}
	return f
}

// ZeroDone gives a frame of NextFree back, filled with zeros.
// +checklocks:d.mu
func (d *Database) ZeroDone(f Frame) {
	d.apply(f, MadeZero)
	if f > d.limit {
		d.apply(f, Retire)
	}
}

// TakeRecord takes a frame out of use because the manager's own records have grown by its memory (NT: a nonpaged pool
// page). The caller gives the frame's memory back to the host, before the frame can become another one's (GiveRecord,
// Shrink). 0 if none is available.
// +checklocks:d.mu
func (d *Database) TakeRecord() Frame {
	f, _ := d.Alloc(0, 0, 0, false, 0)
	if f == 0 {
		return 0
	}
	d.apply(f, MakeValid)
	e := &d.entries[f]
	e.flags, e.refs = record, 0
	d.push(&d.records, f)
	return f
}

// GiveRecord returns the frame that was taken last by TakeRecord. There must be one. It says which it was.
// +checklocks:d.mu
func (d *Database) GiveRecord() Frame {
	f := d.records.tail
	d.remove(&d.records, f)
	d.toFree(f)
	return f
}

// Records is the number of frames that the manager's records have taken over.
// +checklocks:d.mu
func (d *Database) Records() uint64 { return d.records.count }

// Tick advances the clock that list ages are counted in.
// +checklocks:d.mu
func (d *Database) Tick() { d.clock = (d.clock>>tickShift + 1) << tickShift }

// tickShift leaves room for more frames coming to lists in one tick than a machine can do, and for ticks of a second to
// count for eight years.
const tickShift = 36

// Info is a copy of one frame's entry.
type Info struct {
	State    State
	Owner    uint64
	Original uint64
	Refs     uint32
	Priority uint8
	Dirty    bool
	Writing  bool
	Record   bool
	Deleting bool
	Offered  bool // may be lost
	Kept     bool // must not leave memory
	Locked   bool // nor its working set
	Shares   uint32
	Why      Event
}

// Info returns a copy of f's entry.
// +checklocks:d.mu
func (d *Database) Info(f Frame) Info {
	e := &d.entries[f]
	return Info{
		State: e.state, Owner: e.owner, Original: e.original, Refs: e.refs, Priority: e.priority,
		Dirty: e.flags&dirty != 0, Writing: e.flags&writing != 0, Record: e.flags&record != 0, Deleting: e.flags&deleting != 0,
		Offered: e.flags&offer != 0, Kept: e.flags&keep != 0, Locked: e.flags&lock != 0, Shares: e.shares, Why: e.why,
	}
}

// Counts are the lengths of the lists.
type Counts struct {
	Zeroed, Free, Modified, ModifiedNoWrite, Transition, Active, Bad, Records, Retired uint64
	Standby, Repurposed                                                                [Priorities]uint64
	Stolen, Emptied, Limited                                                           uint64 // pages that left so
}

// Counts copies the lengths of the lists.
// +checklocks:d.mu
func (d *Database) Counts() Counts {
	c := Counts{
		Zeroed: d.zeroed.count, Free: d.free.count, Transition: d.transition, Bad: d.bad.count, Records: d.records.count,
		Retired: d.retired, Repurposed: d.repurposed, Stolen: d.departed[Stolen], Emptied: d.departed[Emptied],
		Limited: d.departed[Limited],
	}
	for i := range d.parts {
		p := &d.parts[i]
		c.Modified += p.modified.count
		c.ModifiedNoWrite += p.noWrite.count
		c.Active += p.active
		for prio := range p.standby {
			c.Standby[prio] += p.standby[prio].count
		}
	}
	return c
}

// ModifiedCount is the length of the Modified list.
// +checklocks:d.mu
func (d *Database) ModifiedCount() (n uint64) {
	for i := range d.parts {
		n += d.parts[i].modified.count
	}
	return n
}

// PurgeStandby takes every Standby frame of the given priorities away from its page, whose bytes are in its store.
// It returns how many.
// +checklocks:d.mu
func (d *Database) PurgeStandby(lowest, highest int) (n uint64) {
	for f := d.oldestStandby(lowest, highest); f != 0; f = d.oldestStandby(lowest, highest) {
		d.giveBack(&d.entries[f], Emptied)
		d.toFree(f)
		n++
	}
	return n
}

// Run is the memory of n consecutive frames from f on.
func (d *Database) Run(f Frame, n int) []byte {
	o := int(f) * PageSize
	return d.arena[o : o+n*PageSize]
}
