package pfn

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Parts is how many parts the PFN lock has.
const Parts = 8

// Part is one of them, and what it guards: the entries of frames that were allocated for it, and their lists.
type Part uint8

// Hold says what RLock took.
type Hold uint8

// wholeHold is all parts.
const wholeHold Hold = Parts

// partRWMutex is a lock in parts. Lock takes all of it, RLock one part, which two cannot have at once either; what one part
// guards is the holder's to change. (The lock analyser takes a lock's kind from the name of its type: to it, a part is a
// read lock, with which what needs all of the lock cannot be called.)
//
// The lock is biased. It is either open or closed, and changes from one to the other only as often as its use does:
//
//   - Closed, it is mu and nothing else: RLock takes mu as well, and so holds all parts. Lock costs what a mutex costs.
//   - Open, a part is had by setting its word, which lies in a cache line of its own: nothing is written that the holder of
//     another part reads. Lock takes mu, closes the lock, and waits for the parts that are held.
//
// RLock opens it when calmEnough parts in a row were asked for with no Lock between them. Whoever finds a part held waits for
// it with mu held, so that mu is the queue. The holder of a part waits for nothing, and holds it for less than a microsecond.
type partRWMutex struct {
	_    [cacheLines]byte
	mu   sync.Mutex
	calm uint32 // RLocks since the last Lock, while closed; mu
	_    [cacheLines]byte
	open atomic.Bool // changes with mu held
	_    [cacheLines]byte
	held [Parts]struct {
		atomic.Bool
		_ [cacheLines]byte
	}
}

const (
	// calmEnough is more than the requests that need all of the lock as well ask for in a row.
	calmEnough = 3
	// cacheLines keeps what one processor writes and what another reads apart. Processors fetch lines in pairs.
	cacheLines = 128
)

// Lock takes all parts.
// +checklocksignore
func (m *partRWMutex) Lock() {
	m.mu.Lock()
	m.calm = 0
	if m.open.Load() {
		m.close()
	}
}

// Unlock releases what Lock took.
// +checklocksignore
func (m *partRWMutex) Unlock() { m.mu.Unlock() }

// RLock takes one part at least. Whoever has it has no other.
// +checklocksignore
func (m *partRWMutex) RLock(p Part) Hold {
	if held := &m.held[p]; m.open.Load() && held.CompareAndSwap(false, true) {
		if m.open.Load() {
			return Hold(p)
		}
		held.Store(false) // Lock has closed it meanwhile, and may not have seen us
	}
	return m.queue(p)
}

// RUnlock releases what RLock took.
// +checklocksignore
func (m *partRWMutex) RUnlock(h Hold) {
	if h == wholeHold {
		m.mu.Unlock()
	} else {
		m.held[h].Store(false)
	}
}

// queue is RLock where the lock is closed, or the part held.
// +checklocksignore
func (m *partRWMutex) queue(p Part) Hold {
	m.mu.Lock()
	if !m.open.Load() {
		if m.calm++; m.calm < calmEnough {
			return wholeHold
		}
		m.open.Store(true)
	}
	spin(func() bool { return m.held[p].CompareAndSwap(false, true) })
	m.mu.Unlock()
	return Hold(p)
}

// close has RLock queue, and waits for the parts that are held. Preconditions: mu is held.
// +checklocksignore
func (m *partRWMutex) close() {
	m.open.Store(false)
	for p := range m.held {
		if held := &m.held[p]; held.Load() {
			spin(func() bool { return !held.Load() })
		}
	}
}

// spin waits for what the holder of a part is about to do: at once, unless it was interrupted. Then its processor, which may
// be ours, has to come to it first.
func spin(done func() bool) {
	for n := 0; !done(); n++ {
		switch {
		case n < 100:
		case n < 200:
			runtime.Gosched()
		default:
			time.Sleep(20 * time.Microsecond)
		}
	}
}
