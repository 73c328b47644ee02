// Package store holds the places that pages go to when they leave memory: dumb arrays of numbered slots, each one page
// of SlotSize bytes. A store reads, writes, grows and gives space back, and knows nothing else: which slots are in use,
// what their checksums are, how writes are clustered and what was promised to whom is the business of mm's page file,
// once, above every store. Other stores (compressed, encrypted, remote) are decorators that pass the same suite.
//
//   - File is the page file: a file of its own, unlinked at once, read and written past the host's page cache.
//   - Mem is anonymous memory, for tests.
//   - Flaky is a decorator that fails, tears, corrupts or delays what passes through it, for tests and fault drills.
//
// All stores are safe for concurrent use, with two rules that the page file above keeps anyway: a slot is not read,
// written or discarded while it is being written or discarded, and Close comes after all I/O has ended. No store takes
// a lock of its own across I/O, but for Grow, which is serialised with itself; none calls back.
package store

import (
	"errors"
	"fmt"
)

// SlotSize is the size of a slot in bytes: one page.
const SlotSize = 4096

// Store is what a decorator wraps. It is the method set that mm's page file asks for.
type Store interface {
	// ReadSlots fills bufs from the consecutive slots that begin at slot. Each buffer is a multiple of SlotSize long and
	// starts at a multiple of SlotSize in memory. A slot that was never written since it was made reads as zeros.
	ReadSlots(slot uint64, bufs [][]byte) error
	// WriteSlots stores bufs, as above, into the consecutive slots that begin at slot. After an error the contents of
	// all of these slots are undefined.
	WriteSlots(slot uint64, bufs [][]byte) error
	// Grow makes room for slots slots in all, and never shrinks. After an error the store has the size it had.
	Grow(slots uint64) error
	// Discard gives the space of n slots back. Their contents are undefined until they are written again.
	Discard(slot, n uint64) error
	// Reserve makes room again for n slots that were discarded, so that writing them cannot fail for want of space.
	Reserve(slot, n uint64) error
	// Close gives everything back.
	Close() error
}

// Error is a failed operation on a store.
type Error struct {
	Path  string // of the store
	Op    string // "read", "write", "grow", "discard"
	Slot  uint64 // first slot of the operation
	Count uint64 // slots
	Err   error  // usually a unix.Errno
}

// Error names the store, the operation, the slots and the reason.
func (e *Error) Error() string {
	return fmt.Sprintf("%s: %s of %d slots at slot %d: %v", e.Path, e.Op, e.Count, e.Slot, e.Err)
}

// Unwrap is the reason alone.
func (e *Error) Unwrap() error { return e.Err }

var (
	errOutside   = errors.New("outside the store")
	errUnaligned = errors.New("a buffer is not a whole number of slots")
)

// slotsOf is the number of slots that bufs hold.
func slotsOf(bufs [][]byte) (uint64, error) {
	var n uint64
	for _, b := range bufs {
		if len(b)%SlotSize != 0 {
			return 0, errUnaligned
		}
		n += uint64(len(b) / SlotSize)
	}
	return n, nil
}

// inside reports whether the slots [slot, slot+n) lie within size slots.
func inside(slot, n, size uint64) bool { return n <= size && slot <= size-n }
