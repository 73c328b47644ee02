package store

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Mem is a store in anonymous memory, outside the Go heap. Its memory is not part of any mount's budget: it is for tests.
type Mem struct {
	mu sync.RWMutex
	// +checklocks:mu
	size uint64 // slots
	// +checklocks:mu
	chunks [][]byte // chunkSlots slots each
	// +checklocks:mu
	closed bool
}

// chunkSlots is how many slots Mem maps at once.
const chunkSlots = 1024

// NewMem makes a store of no slots.
func NewMem() *Mem { return &Mem{} }

// Name says what it is.
func (m *Mem) Name() string { return "memory" }

// ReadSlots reads slots; see Store.
func (m *Mem) ReadSlots(slot uint64, bufs [][]byte) error {
	return m.each("read", slot, bufs, func(buf, stored []byte) { copy(buf, stored) })
}

// WriteSlots writes slots; see Store.
func (m *Mem) WriteSlots(slot uint64, bufs [][]byte) error {
	return m.each("write", slot, bufs, func(buf, stored []byte) { copy(stored, buf) })
}

func (m *Mem) each(op string, slot uint64, bufs [][]byte, move func(buf, stored []byte)) error {
	n, err := slotsOf(bufs)
	m.mu.RLock()
	defer m.mu.RUnlock()
	if err == nil && !inside(slot, n, m.size) {
		err = errOutside
	}
	if err != nil {
		return &Error{Path: m.Name(), Op: op, Slot: slot, Count: n, Err: err}
	}
	for _, buf := range bufs {
		for ; len(buf) > 0; buf = buf[SlotSize:] {
			at := slot % chunkSlots * SlotSize
			move(buf[:SlotSize], m.chunks[slot/chunkSlots][at:at+SlotSize])
			slot++
		}
	}
	return nil
}

// Grow maps more memory; see Store.
func (m *Mem) Grow(slots uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	err := error(nil)
	if m.closed {
		err = fs.ErrClosed
	}
	for err == nil && uint64(len(m.chunks))*chunkSlots < slots {
		var chunk []byte
		chunk, err = unix.Mmap(-1, 0, chunkSlots*SlotSize, unix.PROT_READ|unix.PROT_WRITE,
			unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
		if err == nil {
			m.chunks = append(m.chunks, chunk)
		}
	}
	if err != nil {
		return &Error{Path: m.Name(), Op: "grow", Slot: m.size, Count: slots - m.size, Err: err}
	}
	m.size = max(m.size, slots)
	return nil
}

// Discard gives memory back to the host; see Store.
func (m *Mem) Discard(slot, n uint64) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if !inside(slot, n, m.size) {
		return m.discardError(slot, n, errOutside)
	}
	for end := slot + n; slot < end; {
		first := slot % chunkSlots
		count := min(end-slot, chunkSlots-first)
		chunk := m.chunks[slot/chunkSlots]
		if err := unix.Madvise(chunk[first*SlotSize:(first+count)*SlotSize], unix.MADV_DONTNEED); err != nil {
			return m.discardError(slot, n, err)
		}
		slot += count
	}
	return nil
}

func (m *Mem) discardError(slot, n uint64, err error) error {
	return &Error{Path: m.Name(), Op: "discard", Slot: slot, Count: n, Err: err}
}

// Reserve has nothing to do; see Store.
func (m *Mem) Reserve(slot, n uint64) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if !inside(slot, n, m.size) {
		return &Error{Path: m.Name(), Op: "grow", Slot: slot, Count: n, Err: errOutside}
	}
	return nil
}

// Close unmaps everything.
func (m *Mem) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for _, chunk := range m.chunks {
		if err := unix.Munmap(chunk); err != nil {
			errs = append(errs, fmt.Errorf("memory: close: %w", err))
		}
	}
	m.chunks, m.size, m.closed = nil, 0, true
	return errors.Join(errs...)
}

// alignedSlots is a buffer of n slots that direct I/O takes.
func alignedSlots(n int) []byte {
	buf := make([]byte, (n+1)*SlotSize)
	skip := -uintptr(unsafe.Pointer(&buf[0])) & (SlotSize - 1)
	return buf[skip : skip+uintptr(n*SlotSize) : skip+uintptr(n*SlotSize)]
}
