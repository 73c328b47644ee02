package heap

import (
	"errors"
	"math"
	"sync"
)

// Flags of GlobalAlloc and LocalAlloc (GMEM_, LMEM_). NOCOMPACT, NODISCARD, LOWER, NOTIFY and unknown ones are taken and
// have no effect.
const (
	MemFixed     = 0x0
	MemMoveable  = 0x2
	MemZeroInit  = 0x40
	MemModify    = 0x80
	GMemDiscard  = 0x100  // GMEM_DISCARDABLE
	GMemDDEShare = 0x2000 // GMEM_DDESHARE
	LMemDiscard  = 0xF00  // LMEM_DISCARDABLE
	GHND         = MemMoveable | MemZeroInit
	GPTR         = MemFixed | MemZeroInit
	LHND         = GHND
	LPTR         = GPTR
	MemDiscarded = 0x4000 // in the result of GlobalFlags and LocalFlags
	MemInvalid   = 0x8000 // GMEM_INVALID_HANDLE
	MemLockCount = 0xFF   // mask of the lock count
	maxLockCount = 0xFF
)

// Flags of a handle's entry, as on Windows.
const (
	inUse          = 0x1
	movableBlock   = 0x2
	discardable    = 0x4
	discarded      = 0x8
	ddeShare       = 0x8000
	entryLockShift = 16
)

// handleTable is the table of movable blocks, in the process's memory: entries of two pointers, the first with flags and
// lock count, the second with the address of the block, 0 while it is discarded. A handle is the address of its entry's
// second pointer. The first pointer of a free entry is the address of the next free one, or of the table's end; its second
// is 0.
type handleTable struct {
	mu        sync.Mutex // after the default heap's section; heap locks are taken inside it
	base      uint64     // 0 before the first movable block
	committed uint64     // bytes
	next      uint64     // bytes: entries from here on have never been used
	free      uint64     // the handle of the first free entry, 0 for none
}

// memory is one call on Global or Local memory: the default heap is locked and the table as well.
type memory struct {
	*Thread
	table *handleTable
	heap  *object
	local bool
}

// movable is the entry of a handle.
type movable struct {
	handle uint64
	flags  uint64 // inUse, discardable, ddeShare
	locks  uint64
	ptr    uint64
}

// with runs f as one call, with the default heap locked as Windows does.
func (t *Thread) with(local bool, f func(m *memory) error) error {
	h := t.heaps.process
	if err := h.lock.enter(t); err != nil {
		return err
	}
	defer h.lock.leave(t)
	table := &t.heaps.handles
	table.mu.Lock()
	defer table.mu.Unlock()
	return f(&memory{t, table, h, local})
}

// isHandle reports whether a value has the form of a handle rather than of a block's address.
func (m *memory) isHandle(mem uint64) bool { return mem%m.heap.l.unit == m.heap.l.ptr }

func (m *memory) run(f func(h *object)) error {
	return m.heap.call(m.Thread, 0, func() error {
		f(m.heap)
		return nil
	})
}

// entry reads a handle's entry; ERROR_INVALID_HANDLE if it has none in use.
func (m *memory) entry(handle uint64) (e movable, err error) {
	l := m.heap.l
	if m.table.base == 0 || handle < m.table.base || handle >= m.table.base+m.table.next || !m.isHandle(handle) {
		return e, win32(errorInvalidHandle)
	}
	err = m.run(func(h *object) {
		w := h.pointer(handle - l.ptr)
		e = movable{handle, w & 0xFFFF, w >> entryLockShift & maxLockCount, h.pointer(handle)}
	})
	if err == nil && e.flags&inUse == 0 {
		err = win32(errorInvalidHandle)
	}
	return e, err
}

func (m *memory) store(e movable) error {
	w := e.flags&^discarded | inUse | movableBlock | e.locks<<entryLockShift
	if e.ptr == 0 {
		w |= discarded
	}
	return m.write(e.handle, w, e.ptr)
}

// write writes both words of an entry.
func (m *memory) write(handle, first, second uint64) error {
	return m.run(func(h *object) {
		h.setPointer(handle-h.l.ptr, first)
		h.setPointer(handle, second)
	})
}

// end is the address behind the table.
func (m *memory) end() uint64 { return m.table.base + handleTableEntries*m.heap.l.unit }

// newHandle takes an entry that is not in use; ERROR_NOT_ENOUGH_MEMORY if all 65536 are.
func (m *memory) newHandle() (handle uint64, err error) {
	t, l := m.table, m.heap.l
	if t.free != 0 {
		handle = t.free
		err = m.run(func(h *object) {
			next := h.pointer(handle - l.ptr)
			inside := next >= t.base && next < t.base+t.next && next%l.unit == 0
			if next&inUse != 0 || (next != m.end() && !inside) {
				h.fail(handle, "the list of free handles")
			}
			if t.free = 0; inside {
				t.free = next + l.ptr
			}
		})
		return handle, err
	}
	if t.base == 0 {
		base, err := m.heaps.space.Reserve(handleTableEntries*l.unit, PageReadWrite)
		if err != nil {
			return 0, win32(errorNotEnoughMemory)
		}
		m.heaps.label(base, "Global handles")
		t.base = base
	}
	if t.next == handleTableEntries*l.unit {
		return 0, win32(errorNotEnoughMemory)
	}
	if t.next == t.committed {
		if m.heaps.space.Commit(t.base+t.committed, l.page, PageReadWrite) != nil {
			return 0, win32(errorNotEnoughMemory)
		}
		t.committed += l.page
	}
	handle = t.base + t.next + l.ptr
	t.next += l.unit
	return handle, nil
}

func (m *memory) freeHandle(handle uint64) error {
	next := m.end()
	if m.table.free != 0 {
		next = m.table.free - m.heap.l.ptr
	}
	m.table.free = handle
	return m.write(handle, next, 0)
}

func (m *memory) heapFlags(flags uint32) uint32 {
	if flags&MemZeroInit != 0 {
		return ZeroMemory
	}
	return 0
}

func (m *memory) discardFlag() uint32 {
	if m.local {
		return LMemDiscard
	}
	return GMemDiscard
}

// attributes are the flags of a new movable block that GlobalFlags shows.
func (m *memory) attributes(flags uint32) (a uint64) {
	if flags&m.discardFlag() != 0 {
		a |= discardable
	}
	if !m.local && flags&GMemDDEShare != 0 {
		a |= ddeShare
	}
	return a
}

func (m *memory) alloc(flags uint32, size uint64) (uint64, error) {
	if flags&MemMoveable == 0 {
		if size == 0 && !m.local {
			size = 1 // GMEM_FIXED blocks are never empty
		}
		return m.heap.allocUser(m.Thread, m.heapFlags(flags), size, 0)
	}
	handle, err := m.newHandle()
	if err != nil {
		return 0, err
	}
	e := movable{handle: handle, flags: m.attributes(flags)}
	if size > 0 {
		if e.ptr, err = m.heap.allocUser(m.Thread, m.heapFlags(flags), size, handle); err != nil {
			m.freeHandle(handle)
			return 0, err
		}
	}
	return handle, m.store(e)
}

// fixed reports whether mem is the address of a busy block of the default heap. What is not readable at all is
// ERROR_NOACCESS.
func (m *memory) fixed(mem uint64) (ok bool, size uint64, front bool, err error) {
	err = m.run(func(h *object) {
		b, large := h.busyAt(mem)
		if large != nil {
			size = large.size
		} else {
			size, front = b.size(h.l), b.sub != nil
		}
	})
	switch {
	case isUnreadable(err):
		return false, 0, false, win32(errorNoAccess)
	case isCorruption(err):
		return false, 0, false, nil
	}
	return err == nil, size, front, err
}

// isNoAccess reports whether err is what fixed says of what is not readable.
func isNoAccess(err error) bool { return errors.Is(err, &Error{errorNoAccess}) }

func (m *memory) free(mem uint64) (uint64, error) {
	if mem == 0 {
		return 0, nil
	}
	if !m.isHandle(mem) {
		ok, err := m.HeapFree(m.heap.base, 0, mem)
		switch {
		case ok:
			return 0, nil
		case isUnreadable(err):
			return mem, win32(errorNoAccess)
		}
		return mem, err
	}
	e, err := m.entry(mem)
	if err != nil {
		return mem, err
	}
	if e.ptr != 0 {
		if _, err := m.HeapFree(m.heap.base, 0, e.ptr); err != nil {
			return mem, err
		}
	}
	return 0, m.freeHandle(mem)
}

func (m *memory) size(mem uint64) (uint64, error) {
	if m.isHandle(mem) {
		e, err := m.entry(mem)
		if err != nil || e.ptr == 0 {
			return 0, err
		}
		mem = e.ptr
	}
	ok, size, _, err := m.fixed(mem)
	if err == nil && !ok || isNoAccess(err) {
		err = win32(errorInvalidHandle)
	}
	return size, err
}

func (m *memory) flags(mem uint64) (uint32, error) {
	if !m.isHandle(mem) {
		ok, _, _, err := m.fixed(mem)
		switch {
		case ok:
			return 0, nil
		case isNoAccess(err) && !m.local, err == nil:
			err = win32(errorInvalidHandle)
		}
		return MemInvalid, err
	}
	e, err := m.entry(mem)
	if err != nil {
		return MemInvalid, err
	}
	f := uint32(e.locks)
	if e.flags&discardable != 0 {
		f |= GMemDiscard // the same bit of LMEM_DISCARDABLE
	}
	if e.flags&ddeShare != 0 {
		f |= GMemDDEShare
	}
	if e.ptr == 0 {
		f |= MemDiscarded
	}
	return f, nil
}

func (m *memory) lock(mem uint64) (uint64, error) {
	if !m.isHandle(mem) {
		ok, _, _, err := m.fixed(mem)
		switch {
		case ok:
			return mem, nil
		case err != nil && !isNoAccess(err):
			return 0, err
		case m.local:
			return 0, nil
		}
		return 0, win32(errorInvalidHandle)
	}
	e, err := m.entry(mem)
	if err != nil {
		return 0, err
	}
	if e.ptr == 0 {
		return 0, win32(errorDiscarded)
	}
	if e.locks < maxLockCount {
		e.locks++
	}
	return e.ptr, m.store(e)
}

func (m *memory) unlock(mem uint64) (bool, error) {
	if !m.isHandle(mem) {
		if m.local {
			return false, win32(errorNotLocked)
		}
		return true, nil
	}
	e, err := m.entry(mem)
	if err != nil {
		return !m.local, err
	}
	if e.locks == 0 {
		return false, win32(errorNotLocked)
	}
	e.locks--
	if err := m.store(e); err != nil {
		return false, err
	}
	if e.locks == 0 {
		return false, win32(errorSuccess)
	}
	return true, nil
}

func (m *memory) handle(p uint64) (uint64, error) {
	if m.isHandle(p) {
		if _, err := m.entry(p); err != nil {
			return 0, err
		}
		return p, nil
	}
	handle := uint64(0)
	err := m.run(func(h *object) {
		b, large := h.busyAt(p)
		if large != nil {
			handle = large.user
		} else if b.e.is(flagExtra) {
			handle = h.pointer(b.userValue(h.l))
		}
	})
	switch {
	case isUnreadable(err) && m.local:
		return 0, win32(errorNoAccess)
	case isCorruption(err):
		return 0, win32(errorInvalidHandle)
	case err != nil:
		return 0, err
	}
	if handle == 0 {
		return p, nil
	}
	if e, err := m.entry(handle); err != nil || e.ptr != p {
		return 0, win32(errorInvalidHandle)
	}
	return handle, nil
}

func (m *memory) realloc(mem, size uint64, flags uint32) (uint64, error) {
	if mem == 0 {
		return 0, win32(errorInvalidHandle)
	}
	if m.isHandle(mem) {
		return m.reallocMovable(mem, size, flags)
	}
	return m.reallocFixed(mem, size, flags)
}

func (m *memory) reallocFixed(mem, size uint64, flags uint32) (uint64, error) {
	ok, old, front, err := m.fixed(mem)
	if err != nil || !ok {
		if err == nil {
			err = win32(errorInvalidHandle)
		}
		return 0, err
	}
	switch {
	case flags&MemModify != 0:
		if m.local || flags&MemMoveable == 0 {
			return mem, nil
		}
		return m.makeMovable(mem, old, flags)
	case flags&m.discardFlag() != 0:
		return 0, win32(errorInvalidParameter)
	case flags&MemMoveable == 0 && front:
		// The front end's blocks have the size of their class and stay so.
		return 0, win32(errorNotEnoughMemory)
	case flags&MemMoveable == 0:
		return m.heap.reallocUser(m.Thread, m.heapFlags(flags)|ReallocInPlaceOnly, mem, size)
	case front:
		return m.move(mem, min(old, size), size, flags, 0)
	}
	return m.heap.reallocUser(m.Thread, m.heapFlags(flags), mem, size)
}

// move makes a new block of size bytes with the first n of the block at mem, which it frees.
func (m *memory) move(mem, n, size uint64, flags uint32, user uint64) (uint64, error) {
	p, err := m.heap.allocUser(m.Thread, m.heapFlags(flags), size, user)
	if err != nil {
		return 0, err
	}
	if err := m.run(func(h *object) { h.copy(p, mem, n) }); err != nil {
		return 0, err
	}
	if _, err := m.HeapFree(m.heap.base, 0, mem); err != nil {
		return 0, err
	}
	return p, nil
}

// makeMovable turns a fixed block of size bytes into a movable one, which has another address.
func (m *memory) makeMovable(mem, size uint64, flags uint32) (uint64, error) {
	handle, err := m.newHandle()
	if err != nil {
		return 0, err
	}
	p, err := m.move(mem, size, size, 0, handle)
	if err != nil {
		m.freeHandle(handle)
		return 0, err
	}
	return handle, m.store(movable{handle: handle, flags: m.attributes(flags), ptr: p})
}

func (m *memory) reallocMovable(mem, size uint64, flags uint32) (uint64, error) {
	e, err := m.entry(mem)
	switch {
	case err != nil:
		return 0, err
	case flags&MemModify != 0:
		e.flags |= m.attributes(flags) & discardable
		return mem, m.store(e)
	case flags&m.discardFlag() != 0:
		return 0, win32(errorInvalidParameter)
	case size == 0:
		return m.discard(e, flags)
	}
	heapFlags := m.heapFlags(flags)
	if e.locks > 0 && flags&MemMoveable == 0 {
		heapFlags |= ReallocInPlaceOnly
	}
	var p uint64
	if e.ptr == 0 {
		p, err = m.heap.allocUser(m.Thread, heapFlags, size, mem)
	} else {
		p, err = m.heap.reallocUser(m.Thread, heapFlags, e.ptr, size)
	}
	if err != nil {
		return 0, err
	}
	e.ptr = p
	return mem, m.store(e)
}

// discard takes the memory of a movable block that is not locked and leaves its handle.
func (m *memory) discard(e movable, flags uint32) (uint64, error) {
	if flags&MemMoveable == 0 || e.locks > 0 {
		return 0, win32(errorInvalidParameter)
	}
	if e.ptr != 0 {
		if _, err := m.HeapFree(m.heap.base, 0, e.ptr); err != nil {
			return 0, err
		}
		e.ptr = 0
	}
	return e.handle, m.store(e)
}

// call runs f as one call on Global or Local memory and hands its results on.
func call[T any](t *Thread, local bool, f func(m *memory) (T, error)) (r T, err error) {
	err = t.with(local, func(m *memory) (err error) {
		r, err = f(m)
		return err
	})
	return r, err
}

// GlobalAlloc takes a block of size bytes from the default heap. Without MemMoveable the result is its address; with it,
// a handle, which is an odd multiple of a pointer's size, and GlobalLock gives the address. A movable block of 0 bytes is
// a discarded one; a fixed one has 1 byte.
func (t *Thread) GlobalAlloc(flags uint32, size uint64) (uint64, error) {
	return call(t, false, func(m *memory) (uint64, error) { return m.alloc(flags, size) })
}

// LocalAlloc is GlobalAlloc, but a fixed block of 0 bytes has 0.
func (t *Thread) LocalAlloc(flags uint32, size uint64) (uint64, error) {
	return call(t, true, func(m *memory) (uint64, error) { return m.alloc(flags, size) })
}

// GlobalReAlloc changes the size of a block, or with MemModify its attributes alone. A fixed block, and a locked one,
// only moves with MemMoveable; with that and MemModify a fixed block becomes movable. A movable block of size 0 is
// discarded, unless it is locked.
func (t *Thread) GlobalReAlloc(mem, size uint64, flags uint32) (uint64, error) {
	return call(t, false, func(m *memory) (uint64, error) { return m.realloc(mem, size, flags) })
}

// LocalReAlloc is GlobalReAlloc, but a fixed block stays fixed.
func (t *Thread) LocalReAlloc(mem, size uint64, flags uint32) (uint64, error) {
	return call(t, true, func(m *memory) (uint64, error) { return m.realloc(mem, size, flags) })
}

// GlobalFree gives a block back, locked or not, and its handle; the result is 0, or mem if that failed.
func (t *Thread) GlobalFree(mem uint64) (uint64, error) {
	return call(t, false, func(m *memory) (uint64, error) { return m.free(mem) })
}

// LocalFree is GlobalFree.
func (t *Thread) LocalFree(mem uint64) (uint64, error) {
	return call(t, true, func(m *memory) (uint64, error) { return m.free(mem) })
}

// GlobalSize is the size of a block in bytes, 0 of a discarded one.
func (t *Thread) GlobalSize(mem uint64) (uint64, error) {
	return call(t, false, func(m *memory) (uint64, error) { return m.size(mem) })
}

// LocalSize is GlobalSize.
func (t *Thread) LocalSize(mem uint64) (uint64, error) {
	return call(t, true, func(m *memory) (uint64, error) { return m.size(mem) })
}

// GlobalFlags is the lock count of a block and, or-ed to it, GMemDiscard, GMemDDEShare and MemDiscarded; or MemInvalid.
func (t *Thread) GlobalFlags(mem uint64) (uint32, error) {
	return call(t, false, func(m *memory) (uint32, error) { return m.flags(mem) })
}

// LocalFlags is GlobalFlags.
func (t *Thread) LocalFlags(mem uint64) (uint32, error) {
	return call(t, true, func(m *memory) (uint32, error) { return m.flags(mem) })
}

// GlobalLock adds one to the lock count of a movable block, up to 255, and returns its address; of a fixed block it
// returns the address alone. ERROR_DISCARDED if there is none.
func (t *Thread) GlobalLock(mem uint64) (uint64, error) {
	return call(t, false, func(m *memory) (uint64, error) { return m.lock(mem) })
}

// LocalLock is GlobalLock.
func (t *Thread) LocalLock(mem uint64) (uint64, error) {
	return call(t, true, func(m *memory) (uint64, error) { return m.lock(mem) })
}

// GlobalUnlock takes one off the lock count of a movable block. It is true while the block stays locked, and always for
// what is no movable block; false with ERROR_SUCCESS when the block is no longer locked, with ERROR_NOT_LOCKED when it
// was not.
func (t *Thread) GlobalUnlock(mem uint64) (bool, error) {
	return call(t, false, func(m *memory) (bool, error) { return m.unlock(mem) })
}

// LocalUnlock is GlobalUnlock, but false for what is no movable block: ERROR_NOT_LOCKED or ERROR_INVALID_HANDLE.
func (t *Thread) LocalUnlock(mem uint64) (bool, error) {
	return call(t, true, func(m *memory) (bool, error) { return m.unlock(mem) })
}

// GlobalHandle is the handle of the movable block whose address is p, and p itself for any other block of the heap.
func (t *Thread) GlobalHandle(p uint64) (uint64, error) {
	return call(t, false, func(m *memory) (uint64, error) { return m.handle(p) })
}

// LocalHandle is GlobalHandle.
func (t *Thread) LocalHandle(p uint64) (uint64, error) {
	return call(t, true, func(m *memory) (uint64, error) { return m.handle(p) })
}

// GlobalDiscard is GlobalReAlloc(mem, 0, GMEM_MOVEABLE).
func (t *Thread) GlobalDiscard(mem uint64) (uint64, error) {
	return t.GlobalReAlloc(mem, 0, MemMoveable)
}

// LocalDiscard is LocalReAlloc(mem, 0, LMEM_MOVEABLE).
func (t *Thread) LocalDiscard(mem uint64) (uint64, error) { return t.LocalReAlloc(mem, 0, MemMoveable) }

// The C runtime's functions are thin users of the default heap.

// Malloc is malloc(3): HeapAlloc from the default heap. 0 and ERROR_NOT_ENOUGH_MEMORY stand for ENOMEM.
func (t *Thread) Malloc(size uint64) (uint64, error) { return t.HeapAlloc(t.GetProcessHeap(), 0, size) }

// Calloc is calloc(3): n times size bytes of zeros.
func (t *Thread) Calloc(n, size uint64) (uint64, error) {
	if size != 0 && n > math.MaxUint64/size {
		return 0, win32(errorNotEnoughMemory)
	}
	return t.HeapAlloc(t.GetProcessHeap(), ZeroMemory, n*size)
}

// Realloc is realloc(3) as the Microsoft C runtime has it: of address 0 it is Malloc, to size 0 it frees the block and
// returns 0.
func (t *Thread) Realloc(p, size uint64) (uint64, error) {
	if p == 0 {
		return t.Malloc(size)
	}
	if size == 0 {
		return 0, t.Free(p)
	}
	return t.HeapReAlloc(t.GetProcessHeap(), 0, p, size)
}

// Free is free(3).
func (t *Thread) Free(p uint64) error {
	_, err := t.HeapFree(t.GetProcessHeap(), 0, p)
	return err
}

// MSize is _msize: HeapSize, in bytes.
func (t *Thread) MSize(p uint64) (uint64, error) { return t.HeapSize(t.GetProcessHeap(), 0, p) }
