package heap

import (
	"errors"
	"fmt"
	"sync"
)

// object is what Windows keeps of a heap outside the heap: where it is, and its lock. All else is in the space's memory
// and read from there at every call. The fields below mu are what the call under way has read, and room to read into.
type object struct {
	heaps *Heaps
	space Space
	l     *layout
	base  uint64
	// number is 1 for the default heap, and one more for each made after it; never used again.
	number int
	lock   section // HeapLock; before mu

	mu    sync.Mutex
	dead  bool
	steps uint64 // reads the call under way may still make
	p     params
	buf   [128]byte
}

// params is the sealed part of the heap's header.
type params struct {
	flags     uint64 // and ForceFlags in the upper half
	key       uint64
	signature uint32
	frontEnd  uint32
	threshold uint64 // the largest block of a segment, bytes
	fixed     uint64 // the reservation of a heap that does not grow, else 0
	reserved  uint64 // bytes of all reservations
	next      uint64 // size of the next segment, bytes
	segments  uint32 // how many
	large     uint32 // how many
	table     uint64 // the front end's, 0 before its first use
}

func (p *params) seal(base uint64) uint64 {
	return sealOf(base, p.flags, p.key, uint64(p.signature)|uint64(p.frontEnd)<<32, p.threshold, p.fixed, p.reserved, p.next,
		uint64(p.segments)|uint64(p.large)<<32, p.table)
}

// fault is the panic that takes a call from wherever it stands to its catch.
type fault struct {
	addr   uint64
	reason string
	err    error
}

// fail ends the call: the structure at addr is not as the heap left it.
func (h *object) fail(addr uint64, reason string) { panic(&fault{addr, reason, nil}) }

// access ends the call for an error of the space.
func (h *object) access(addr uint64, err error) { panic(&fault{addr, "unreadable", err}) }

// minSteps is what a call may read besides what the size of the heap explains.
const minSteps = 1 << 16

// catch makes an error of the panic of a call that has failed. It is a deferred call itself.
func (h *object) catch(err *error) {
	switch r := recover().(type) {
	case nil:
	case *fault:
		*err = h.heaps.raise(r)
	default:
		panic(r)
	}
}

// raise is the error of a fault: what the space said of its own, or STATUS_HEAP_CORRUPTION.
func (s *Heaps) raise(f *fault) error {
	if f.err != nil && !errors.Is(f.err, ErrAccess) {
		return f.err
	}
	return &Exception{StatusHeapCorruption, f.addr, s.terminate.Load(), f.reason, f.err}
}

func (h *object) read(addr uint64, n int) []byte {
	if h.steps == 0 {
		h.fail(addr, "structures have no end")
	}
	h.steps--
	b := h.buf[:n]
	if err := h.space.Read(addr, b); err != nil {
		h.access(addr, err)
	}
	return b
}

func (h *object) write(addr uint64, b []byte) {
	if err := h.space.Write(addr, b); err != nil {
		h.access(addr, err)
	}
}

func (h *object) u64(addr uint64) uint64 { return le(h.read(addr, 8)) }
func (h *object) u32(addr uint64) uint32 { return uint32(le(h.read(addr, 4))) }
func (h *object) u16(addr uint64) uint16 { return uint16(le(h.read(addr, 2))) }

// pointer reads a pointer of the simulated machine.
func (h *object) pointer(addr uint64) uint64 { return le(h.read(addr, int(h.l.ptr))) }

func (h *object) put(addr, v uint64, n int) {
	b := h.buf[:n]
	for i := range b {
		b[i] = byte(v >> (8 * i))
	}
	h.write(addr, b)
}

func (h *object) setPointer(addr, v uint64) { h.put(addr, v, int(h.l.ptr)) }

func le(b []byte) (v uint64) {
	for i := len(b) - 1; i >= 0; i-- {
		v = v<<8 | uint64(b[i])
	}
	return v
}

// load begins a call: it reads the sealed part of the header. The caller holds mu.
func (h *object) load() {
	h.steps = minSteps
	b := h.read(h.base+h.l.sealed, int(h.l.seal+8-h.l.sealed))
	h.p = params{
		flags: le(b[0:8]), key: le(b[8:16]), signature: uint32(le(b[16:20])), frontEnd: uint32(le(b[20:24])),
		threshold: le(b[24:32]), fixed: le(b[32:40]), reserved: le(b[40:48]), next: le(b[48:56]),
		segments: uint32(le(b[56:60])), large: uint32(le(b[60:64])), table: le(b[64:72]),
	}
	if le(b[72:80]) != h.p.seal(h.base) || h.p.signature != heapSignature {
		h.fail(h.base, "the heap's header")
	}
	// Every structure of the heap is a unit or more, and no walk reads one more than a few times.
	h.steps = minSteps + h.p.reserved
}

// store writes the sealed part of the header.
func (h *object) store() {
	b := h.buf[:h.l.seal+8-h.l.sealed]
	words := [...]uint64{h.p.flags, h.p.key, uint64(h.p.signature) | uint64(h.p.frontEnd)<<32, h.p.threshold, h.p.fixed,
		h.p.reserved, h.p.next, uint64(h.p.segments) | uint64(h.p.large)<<32, h.p.table, h.p.seal(h.base)}
	for i, w := range words {
		for j := range 8 {
			b[8*i+j] = byte(w >> (8 * j))
		}
	}
	h.write(h.base+h.l.sealed, b)
}

func (h *object) has(flag uint64) bool { return h.p.flags&flag != 0 }

// reserve is the space's, and tells it what for.
func (h *object) reserve(size uint64, what string) (base uint64, err error) {
	if base, err = h.space.Reserve(size, h.protect()); err == nil {
		h.heaps.label(base, fmt.Sprintf("Heap %d%s", h.number, what))
	}
	return base, err
}

func (h *object) protect() uint32 {
	if h.has(CreateEnableExecute) {
		return PageExecuteReadWrite
	}
	return PageReadWrite
}

// header reads the header of the block at b and checks its sum.
func (h *object) header(b uint64) entry {
	e, ok := unpack(h.u64(b+h.l.unit-8) ^ h.p.key)
	if !ok {
		h.fail(b, "a block's header")
	}
	return e
}

func (h *object) setHeader(b uint64, e entry) { h.put(b+h.l.unit-8, e.word()^h.p.key, 8) }

// wipe takes a header away that no longer begins a block, so that nothing finds it: zero decodes to no header.
func (h *object) wipe(b uint64) { h.put(b+h.l.unit-8, 0, 8) }

// Lists are circular with a head, forward pointer first, as LIST_ENTRY. Whoever follows a pointer checks the one back:
// a list so checked can only end at its head, whatever is in it.

func (h *object) initList(head uint64) {
	h.setPointer(head, head)
	h.setPointer(head+h.l.ptr, head)
}

// after is the node behind node.
func (h *object) after(node uint64) uint64 {
	next := h.pointer(node)
	if h.pointer(next+h.l.ptr) != node {
		h.fail(node, "a list's pointers")
	}
	return next
}

func (h *object) link(head, node uint64) {
	next := h.after(head)
	h.setPointer(node, next)
	h.setPointer(node+h.l.ptr, head)
	h.setPointer(next+h.l.ptr, node)
	h.setPointer(head, node)
}

func (h *object) linkLast(head, node uint64) {
	last := h.pointer(head + h.l.ptr)
	if h.after(last) != head {
		h.fail(head, "a list's pointers")
	}
	h.link(last, node)
}

// unlink takes node out of its list and reports whether the list is empty now.
func (h *object) unlink(node uint64) bool {
	next, prev := h.after(node), h.pointer(node+h.l.ptr)
	if h.pointer(prev) != node {
		h.fail(node, "a list's pointers")
	}
	h.setPointer(prev, next)
	h.setPointer(next+h.l.ptr, prev)
	return next == prev
}

// fill writes n bytes of a repeated 32-bit word, in phase with addr.
func (h *object) fill(addr, n uint64, word uint32) {
	var b [4096]byte
	if word != 0 {
		for i := range b {
			b[i] = byte(word >> (8 * ((addr + uint64(i)) % 4)))
		}
	}
	for n > 0 {
		k := min(n, uint64(len(b)))
		h.write(addr, b[:k])
		addr, n = addr+k, n-k
	}
}

// filled reports whether n bytes still are what fill wrote.
func (h *object) filled(addr, n uint64, word uint32) bool {
	for n > 0 {
		k := min(n, 64)
		for i, c := range h.read(addr, int(k)) {
			if c != byte(word>>(8*((addr+uint64(i))%4))) {
				return false
			}
		}
		addr, n = addr+k, n-k
	}
	return true
}

func (h *object) copy(to, from, n uint64) {
	b := make([]byte, min(n, granularity))
	for n > 0 {
		k := min(n, uint64(len(b)))
		if err := h.space.Read(from, b[:k]); err != nil {
			h.access(from, err)
		}
		h.write(to, b[:k])
		to, from, n = to+k, from+k, n-k
	}
}
