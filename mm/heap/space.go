package heap

import (
	"errors"
	"fmt"
)

// Page protections a heap asks of its space (VirtualAlloc).
const (
	PageReadWrite        = 0x04
	PageExecuteReadWrite = 0x40
)

// Space is the address space heaps live in, with the semantics of VirtualAlloc and VirtualFree. Addresses and sizes are in
// bytes; sizes are multiples of the page size. Its methods may be called by several goroutines at once, but not from
// inside one another: a heap's lock is held while it waits for them.
type Space interface {
	// PointerSize is 4 or 8, and PageSize a power of two from 4 KiB to 16 KiB. Neither ever changes.
	PointerSize() int
	PageSize() int

	// Reserve takes size bytes anywhere in the space, at a multiple of 64 KiB (MEM_RESERVE).
	Reserve(size uint64, protect uint32) (base uint64, err error)
	// Commit gives pages of one reservation memory that reads as zero (MEM_COMMIT). Failing, it has changed nothing.
	Commit(addr, size uint64, protect uint32) error
	// Decommit takes the memory of committed pages away again (MEM_DECOMMIT).
	Decommit(addr, size uint64) error
	// Release gives the whole reservation at base back (MEM_RELEASE).
	Release(base uint64) error

	// Read and Write move bytes as the process itself would. Memory that is not there or not accessible is an error that
	// wraps ErrAccess; any other error, say of a store, reaches the caller of the heap as it is. It may leave the heap
	// damaged, for a call is then half done.
	Read(addr uint64, b []byte) error
	Write(addr uint64, b []byte) error
}

// Labeller is a Space that wants to know what its reservations are for, such as "Heap 1", "Heap 2 segment", "Heap 2 block"
// or "Global handles". Heaps are numbered from 1, the default heap.
type Labeller interface {
	Label(base uint64, what string)
}

func (s *Heaps) label(base uint64, what string) {
	if l, ok := s.space.(Labeller); ok {
		l.Label(base, what)
	}
}

// ErrAccess is what an access violation wraps.
var ErrAccess = errors.New("access violation")

// The Win32 errors of the heap functions.
const (
	errorSuccess            = 0
	errorInvalidHandle      = 6
	errorNotEnoughMemory    = 8
	errorBadLength          = 24
	errorGenFailure         = 31
	errorInvalidParameter   = 87
	errorInsufficientBuffer = 122
	errorDiscarded          = 157
	errorNotLocked          = 158
	errorNoMoreItems        = 259
	errorNotOwner           = 288
	errorNoAccess           = 998
)

// The exceptions of the heap functions.
const (
	StatusAccessViolation = 0xC0000005
	StatusNoMemory        = 0xC0000017
	StatusHeapCorruption  = 0xC0000374
)

// Error is the last error a call leaves behind. Whether the call failed is for its first result to say, as on Windows:
// GlobalUnlock may succeed and still set ERROR_INVALID_HANDLE, and fail with ERROR_SUCCESS. A call that returns no Error
// leaves the thread's last error as it was.
type Error struct {
	Code uint32 // a Win32 error
}

func (e *Error) Error() string { return fmt.Sprintf("win32 error %d", e.Code) }

// Is makes errors.Is compare codes.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && *t == *e
}

func win32(code uint32) error { return &Error{Code: code} }

// Exception is what a call raises instead of returning.
type Exception struct {
	Status    uint32 // STATUS_HEAP_CORRUPTION, STATUS_NO_MEMORY or STATUS_ACCESS_VIOLATION
	Address   uint64 // of the block or structure at fault, 0 if there is none
	Terminate bool   // the process asked to end here: HeapEnableTerminationOnCorruption
	Reason    string // what was found, for people
	Err       error  // the space's error that showed it, or nil
}

func (e *Exception) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("exception %#x at %#x: %s: %v", e.Status, e.Address, e.Reason, e.Err)
	}
	return fmt.Sprintf("exception %#x at %#x: %s", e.Status, e.Address, e.Reason)
}

// Unwrap is the error of the space underneath.
func (e *Exception) Unwrap() error { return e.Err }
