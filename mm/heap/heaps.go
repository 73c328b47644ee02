package heap

import (
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
)

// Options say how the heaps of a process begin.
type Options struct {
	// Reserve and Commit are the default heap's, in bytes, as an image's header has them (SizeOfHeapReserve and
	// SizeOfHeapCommit); 0 stands for 1 MiB and 4 KiB. They are rounded up, to 64 KiB and to whole pages.
	Reserve, Commit uint64

	// GlobalFlags are those of gflags that concern heaps (GlobalFlagTailCheck and so on). They hold for every heap.
	GlobalFlags uint32

	// TerminateOnCorruption is HeapEnableTerminationOnCorruption from the start.
	TerminateOnCorruption bool

	// Random gives keys and picks blocks; nil stands for the system's generator. It may be called by several goroutines
	// at once.
	Random func() uint64
}

// Heaps are the heaps of one process, with its Global and Local memory. The methods that are calls of the Win32 API are
// Thread's.
type Heaps struct {
	space     Space
	l         *layout
	options   Options
	terminate atomic.Bool

	mu sync.Mutex // nothing is taken inside it
	// +checklocks:mu
	table []*object
	// +checklocks:mu
	numbers int // how many heaps there ever were

	process *object
	handles handleTable
}

// New makes the heaps of a process whose memory is space, and its default heap. An error is the space's own, or says
// what of the space or the options is unfit.
func New(space Space, options Options) (*Heaps, error) {
	ptr, page := space.PointerSize(), space.PageSize()
	if ptr != 4 && ptr != 8 {
		return nil, fmt.Errorf("heap: pointers of %d bytes; 4 and 8 are supported", ptr)
	}
	if page < 0x1000 || page > 0x4000 || page&(page-1) != 0 {
		return nil, fmt.Errorf("heap: pages of %d bytes; powers of two from 4 KiB to 16 KiB are supported", page)
	}
	if options.Reserve == 0 {
		options.Reserve = defaultHeapReserve
	}
	if options.Commit == 0 {
		options.Commit = defaultHeapCommit
	}
	if options.Random == nil {
		options.Random = systemRandom
	}
	s := &Heaps{space: space, l: newLayout(uint64(ptr), uint64(page)), options: options}
	s.terminate.Store(options.TerminateOnCorruption)
	h, err := s.create(0, alignUp(max(options.Reserve, options.Commit), granularity), options.Commit, 0)
	if err != nil {
		return nil, err
	}
	s.process = h
	return s, nil
}

func systemRandom() uint64 {
	var b [8]byte
	crand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint64(b[:])
}

func (s *Heaps) random() uint64 { return s.options.Random() }

// Thread is a caller whose waits for a HeapLock end with ctx.
func (s *Heaps) Thread(ctx context.Context) *Thread {
	t := &Thread{heaps: s, ctx: ctx}
	t.self = t
	return t
}

// find is the heap with that handle, or nil.
func (s *Heaps) find(handle uint64) *object {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.table {
		if h.base == handle {
			return h
		}
	}
	return nil
}

// GetProcessHeap is the handle of the default heap.
func (t *Thread) GetProcessHeap() uint64 { return t.heaps.process.base }

// GetProcessHeaps are the handles of all heaps, the default heap's first, then in order of their making.
func (t *Thread) GetProcessHeaps() []uint64 {
	s := t.heaps
	s.mu.Lock()
	defer s.mu.Unlock()
	var handles []uint64
	for _, h := range s.table {
		handles = append(handles, h.base)
	}
	return handles
}

// Numbers are the numbers of the heaps that there are, in order of their making. The default heap is number 1.
func (s *Heaps) Numbers() (numbers []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.table {
		numbers = append(numbers, h.number)
	}
	return numbers
}

// Handle is the handle of the heap with that number, 0 if there is none.
func (s *Heaps) Handle(number int) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.table {
		if h.number == number {
			return h.base
		}
	}
	return 0
}

// HeapCreate makes a heap of which initial bytes are committed at once. With maximum 0 it grows; otherwise it never holds
// more than maximum bytes, its own structures included. The handle is the heap's address.
func (t *Thread) HeapCreate(flags uint32, initial, maximum uint64) (uint64, error) {
	s := t.heaps
	if maximum != 0 {
		maximum = max(maximum, initial)
	}
	limit := uint64(math.MaxInt64)
	if s.l.ptr == 4 {
		limit = math.MaxInt32
	}
	if max(initial, maximum) > limit-2*granularity {
		return 0, win32(errorNotEnoughMemory)
	}
	reserve, fixed := alignUp(initial, s.l.page)+granularity, uint64(0)
	if maximum != 0 {
		reserve = alignUp(maximum, max(0x400*s.l.ptr, s.l.page))
		fixed = reserve
	}
	h, err := s.create(uint64(flags&createFlags), reserve, initial, fixed)
	if err != nil {
		return 0, win32(errorNotEnoughMemory)
	}
	return h.base, nil
}

// number is the next heap's.
func (s *Heaps) number() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.numbers++
	return s.numbers
}

// create makes a heap whose first segment has reserve bytes, and puts it into the table.
func (s *Heaps) create(flags, reserve, commit, fixed uint64) (*object, error) {
	h, err := s.newHeap(flags, reserve, commit, fixed)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.table = append(s.table, h)
	return h, nil
}

func (s *Heaps) newHeap(flags, reserve, commit, fixed uint64) (_ *object, err error) {
	l := s.l
	h := &object{heaps: s, space: s.space, l: l, number: s.number()}
	if fixed == 0 {
		flags |= Growable
	}
	flags |= debugOf(s.options.GlobalFlags)
	h.p = params{
		flags: flags | (flags&debugFlags)<<32, key: s.key(), signature: heapSignature, threshold: maxUnits * l.unit,
		fixed: fixed, reserved: reserve, next: firstGrowth, segments: 1,
	}
	commit = min(alignUp(max(commit, 0x400*l.ptr), l.page), reserve)
	if h.base, err = h.reserve(reserve, ""); err != nil {
		return nil, err
	}
	if err = s.space.Commit(h.base, commit, h.protect()); err != nil {
		s.space.Release(h.base)
		return nil, err
	}
	if err = h.format(reserve, commit); err != nil {
		s.space.Release(h.base)
		return nil, err
	}
	return h, nil
}

func debugOf(global uint32) (flags uint64) {
	for _, f := range [...]struct {
		global uint32
		flag   uint64
	}{{GlobalFlagTailCheck, TailChecking}, {GlobalFlagFreeCheck, FreeChecking},
		{GlobalFlagValidateParameters, TailChecking | FreeChecking},
		{GlobalFlagValidateAll, TailChecking | FreeChecking | ValidateAll}, {GlobalFlagPageAllocs, PageAllocs}} {
		if global&f.global != 0 {
			flags |= f.flag
		}
	}
	return flags
}

// key is a key under which a word of zeros is no header.
func (s *Heaps) key() uint64 {
	for {
		if k := s.random(); fold(k) != 0 {
			return k
		}
	}
}

// format writes the structures of an empty heap into its first segment.
func (h *object) format(reserve, commit uint64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.layOut(reserve, commit)
}

func (h *object) layOut(reserve, commit uint64) (err error) {
	defer h.catch(&err)
	l := h.l
	h.steps = math.MaxUint64
	h.store()
	for _, head := range [...]uint64{l.segHead, l.largeHead, l.ucrHead} {
		h.initList(h.base + head)
	}
	for i := range uint64(freeLists) {
		h.initList(h.list(i))
	}
	h.newSegment(h.base, reserve, commit, l.heapSize, 0)
	return nil
}

// enter begins a call on a heap. A serialised one takes the heap's section first, and exit gives it back.
//
// +checklocksignore
func (h *object) enter(t *Thread, serialise bool) error {
	if serialise {
		if err := h.lock.enter(t); err != nil {
			return err
		}
	}
	h.mu.Lock()
	if h.dead {
		h.mu.Unlock()
		if serialise {
			h.lock.leave(t)
		}
		return win32(errorInvalidHandle)
	}
	return nil
}

// exit ends a call; it is a deferred call itself.
//
// +checklocksignore
func (h *object) exit(t *Thread, serialise bool) {
	h.mu.Unlock()
	if serialise {
		h.lock.leave(t)
	}
}

// serialised reports whether a call with those flags takes the heap's section. What the heap's own flags say is read
// from its header, so a header that cannot be read serialises.
func (h *object) serialised(flags uint32) bool {
	if flags&NoSerialize != 0 {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.dead || h.loadSerialised()
}

func (h *object) loadSerialised() (serialised bool) {
	var err error
	defer h.catch(&err)
	serialised = true
	h.load()
	return !h.has(NoSerialize)
}

// call runs f as one call on the heap.
func (h *object) call(t *Thread, flags uint32, f func() error) error {
	return h.callOr(t, flags, nil, f)
}

// callOr runs f as one call on the heap, or front if the heap's section would have to be waited for and front, which does
// what the front end can do without the section, answers true.
//
// +checklocksignore
func (h *object) callOr(t *Thread, flags uint32, front func() bool, f func() error) error {
	h.mu.Lock()
	serialise := flags&NoSerialize == 0 && (h.dead || h.loadSerialised())
	if serialise && !h.lock.tryEnter(t) {
		if done, err := h.without(front); done || err != nil {
			h.mu.Unlock()
			return err
		}
		h.mu.Unlock()
		if err := h.lock.enter(t); err != nil {
			return err
		}
		h.mu.Lock()
	}
	defer h.exit(t, serialise)
	if h.dead {
		return win32(errorInvalidHandle)
	}
	return h.run(f)
}

// without runs front. The caller holds mu but not the section.
func (h *object) without(front func() bool) (done bool, err error) {
	if front == nil || h.dead {
		return false, nil
	}
	err = h.run(func() error {
		done = front()
		return nil
	})
	return done, err
}

// run runs f with the header read, and makes an error of what it finds amiss. The caller holds mu.
func (h *object) run(f func() error) (err error) {
	defer h.catch(&err)
	h.load()
	if h.has(ValidateAll) {
		h.check()
	}
	return f()
}

// HeapDestroy gives all memory of a heap back. The default heap cannot be destroyed. Of a heap whose structures are
// damaged only what they still lead to comes back, and the corruption is raised.
func (t *Thread) HeapDestroy(handle uint64) (bool, error) {
	s := t.heaps
	h := s.find(handle)
	if h == nil || h == s.process {
		return false, win32(errorInvalidHandle)
	}
	if err := h.enter(t, true); err != nil {
		return false, err
	}
	defer h.exit(t, true)
	h.dead = true
	s.mu.Lock()
	s.table = slices.DeleteFunc(s.table, func(o *object) bool { return o == h })
	s.mu.Unlock()
	bases, err := h.reservations()
	for i := len(bases) - 1; i >= 0; i-- { // the heap's header goes last
		if e := s.space.Release(bases[i]); e != nil && err == nil {
			err = s.raise(&fault{bases[i], "a reservation of the heap is not there", e})
		}
	}
	return err == nil, err
}

// reservations are the bases of all the heap has reserved, as far as its structures lead to them, the heap's own first.
func (h *object) reservations() (bases []uint64, err error) {
	bases = []uint64{h.base}
	defer h.catch(&err)
	h.load()
	s := h.segmentAt(h.base)
	for more := true; more; {
		if s, more = h.nextSegment(&s); more {
			bases = append(bases, s.base)
		}
	}
	for node := h.after(h.base + h.l.largeHead); node != h.base+h.l.largeHead; node = h.after(node) {
		bases = append(bases, h.largeAt(node).base)
	}
	for i := range uint64(quarantineSlots) {
		if base := h.quarantined(h.base + h.l.ring + 8*i); base != 0 {
			bases = append(bases, base)
		}
	}
	return bases, nil
}

// HeapLock takes the heap for the thread: calls of others on it wait, but for those that do not serialise and those that
// the front end serves. It nests.
func (t *Thread) HeapLock(handle uint64) (bool, error) {
	h := t.heaps.find(handle)
	if h == nil {
		return false, win32(errorInvalidHandle)
	}
	if !h.serialised(0) {
		return true, nil
	}
	if err := h.lock.enter(t); err != nil {
		return false, err
	}
	return true, nil
}

// HeapUnlock undoes one HeapLock; ERROR_NOT_OWNER if the thread has none.
func (t *Thread) HeapUnlock(handle uint64) (bool, error) {
	h := t.heaps.find(handle)
	if h == nil {
		return false, win32(errorInvalidHandle)
	}
	if h.serialised(0) && !h.lock.leave(t) {
		return false, win32(errorNotOwner)
	}
	return true, nil
}
