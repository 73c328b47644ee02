// Package offheap holds the manager's records outside the Go heap: one anonymous mapping each, invisible to the
// garbage collector, touched (and so paid for) only as far as it is used, and given back as a whole.
//
// A [Slab] hands out fixed-size records by number, so that a record can name another in four bytes. Records hold no
// Go pointers. Each slab has a lock of its own around its free list, the innermost lock of the program; what is inside
// a record is guarded by whoever owns it.
package offheap

import (
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Map returns n bytes of zeroed anonymous memory that cost nothing until touched.
func Map(n int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("cannot map %d bytes of anonymous memory: %w", n, err)
	}
	// A huge page behind sparse records would cost 2 MiB where 4 KiB were counted.
	_ = unix.Madvise(b, unix.MADV_NOHUGEPAGE)
	return b, nil
}

// Unmap gives a mapping back to the host.
func Unmap(b []byte) error { return unix.Munmap(b) }

// Drop gives the pages of b back to the host; they read as zeros afterwards. b must be page-aligned.
func Drop(b []byte) error { return unix.Madvise(b, unix.MADV_DONTNEED) }

// Lock has the pages of b from the host now, and keeps them; Unlock ends that. b must be page-aligned.
func Lock(b []byte) error { return unix.Mlock(b) }

// Unlock undoes Lock.
func Unlock(b []byte) error { return unix.Munlock(b) }

// Resident is how many pages of b the host has given memory to; 0 if it does not say.
func Resident(b []byte) (n uint64) {
	const most = 1 << 16 // pages that one call looks at
	there := make([]byte, min(most, len(b)/pageSize))
	for len(b) > 0 && len(there) > 0 {
		part := b[:min(len(b), len(there)*pageSize)]
		b = b[len(part):]
		if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&part[0])), uintptr(len(part)),
			uintptr(unsafe.Pointer(&there[0]))); errno != 0 {
			return 0
		}
		for _, is := range there[:len(part)/pageSize] {
			n += uint64(is & 1)
		}
	}
	return n
}

const pageSize = 4096

// Of views a mapping as records of type T. T must hold no Go pointers.
func Of[T any](b []byte) []T {
	var t T
	return unsafe.Slice((*T)(unsafe.Pointer(&b[0])), len(b)/int(unsafe.Sizeof(t)))
}

// ErrFull means that a slab has handed out all its records.
var ErrFull = errors.New("record slab is full")

// Slab is an array of records of type T with a free list. Record 0 is never handed out: 0 means none.
type Slab[T any] struct {
	mem     []byte
	records []T

	mu sync.Mutex
	// +checklocks:mu
	free uint32 // head of the free list, linked through the records' first four bytes
	// +checklocks:mu
	top uint32 // records 1..top have been handed out at least once
	// +checklocks:mu
	live uint32
}

// NewSlab makes a slab of at most limit records. T is at least four bytes.
func NewSlab[T any](limit uint32) (*Slab[T], error) {
	var t T
	mem, err := Map((int(limit) + 1) * int(unsafe.Sizeof(t)))
	if err != nil {
		return nil, err
	}
	return &Slab[T]{mem: mem, records: Of[T](mem)}, nil
}

// At returns record i, 0 < i.
func (s *Slab[T]) At(i uint32) *T { return &s.records[i] }

// Alloc hands out a zeroed record.
func (s *Slab[T]) Alloc() (uint32, error) {
	if i := s.take(); i != 0 {
		return i, nil
	}
	return 0, ErrFull
}

// take returns a zeroed record, 0 if there is none.
func (s *Slab[T]) take() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.free
	switch {
	case i != 0:
		s.free = *s.link(i)
		*s.link(i) = 0
	case int(s.top)+1 < len(s.records):
		s.top++
		i = s.top
	default:
		return 0
	}
	s.live++
	return i
}

// Free takes record i back.
func (s *Slab[T]) Free(i uint32) {
	var zero T
	s.records[i] = zero
	s.mu.Lock()
	defer s.mu.Unlock()
	*s.link(i) = s.free
	s.free = i
	s.live--
}

// Live is the number of records handed out.
func (s *Slab[T]) Live() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live
}

// Top is the highest record number ever handed out.
func (s *Slab[T]) Top() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.top
}

// Close gives the memory back. No record may be used afterwards.
func (s *Slab[T]) Close() error { return Unmap(s.mem) }

func (s *Slab[T]) link(i uint32) *uint32 { return (*uint32)(unsafe.Pointer(&s.records[i])) }
