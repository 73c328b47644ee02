// Package mm is the memory manager: segments of prototype PTEs whose pages live in a fixed arena of frames, are paged out
// to page files and paged in at the next touch.
//
// # The life of a page
//
//	0x10  zero                        never written; a read is served zeros and takes no frame
//	      zero → valid(frame)         first store: demand-zero fault                          fault.go, write.go
//	      valid → transition(frame)   its view leaves the system cache's working set          workingset.go
//	                                  → Modified if no store has its bytes, else Standby
//	      transition → valid          touched again: soft fault, no I/O
//	      Modified → Standby          the modified page writer stored it in a slot            writer.go
//	      transition → paged(slot)    its Standby frame was repurposed                        pfn.Alloc
//	      paged → inIO → valid        touched again: hard fault; colliding faults wait
//	      any → zero                  truncate, punch, delete: frame, slot and commit go back at once
//
// # Terms
//
//	NT                                   here
//	prototype PTE, segment               pte, Segment
//	subsection's run of prototype PTEs   leaf (64 pages, which is also a view)
//	system cache, VACB                   the host kernel's page cache; leaf.host, 256 KiB views
//	TLB shoot-down                       Host.Invalidate
//	MiModifiedPageWriter                 writer
//	zero-page thread                     zeroer
//	balance set manager                  balancer
//	nonpaged pool                        record frames (records.go)
//	hot add and removal of memory        SetMemory (resize.go)
//	private memory of a process          Space (space.go); address spaces proper are in mm/process
//	PTE that maps a prototype PTE        shared word of a Space; share count: pfn.Share (view.go)
//
// # Private memory
//
// A process's private pages (Space) live the same life in a segment of their own. There valid means in the process's working
// set, and no host or view is involved: pages leave when the working set is at its limit, when the process asks, or in turns
// with other processes' when frames are short; a fault that finds none writes pages out itself. Locked pages are pinned.
//
// # Two copies
//
// Real programs see the host's copy of a page, simulated processes ours. Segment.Fetch and Segment.Edit keep them coherent
// (coherence.go).
//
// A View shows pages of a file in a process: its page table has shared words that lead to the file's prototype PTEs, and a
// frame counts them. A file's page is valid as long as there is one, or a view of the host's.
//
// # Locks, in order
//
//	Segment.mu               structure of its tree, I/O records, stores under way; one segment at a time, and behind it
//	                         that of combined pages
//	  PFN lock (pfn.Database) frames, lists, all PTE words, the queue of views; or one of its parts
//	    systemCache.joining  the young end of the queue of views, for who has a part only
//	    recordBook.mu         bytes of records
//	      commit.mu           charges
//	        pageFile.mu       slot bitmap
//	          offheap.Slab    free lists
//	System.segMu (table of segments) and refusals.mu are leaf locks: nothing is taken inside them.
//
// recordBook.syncing, held while the memory of record frames goes back to the host, comes before the PFN lock. Whoever
// changes the memory holds a token (System.resizing), which nobody waits for.
//
// A part of the PFN lock, and the segment's lock with it, is enough to read pages that are in frames: to turn transition words
// into valid ones, set accessed and host bits, pin and unpin (part.go). Each segment belongs to one part. Whatever else changes
// takes the whole lock, and so does whoever reads what is not one segment's.
//
// No lock is held across store I/O, Host calls or Listener calls. A page under I/O is marked in its PTE (inIO) or by its
// frame's reference; whoever needs it waits on the I/O record with no lock held.
//
// # Who waits for what
//
// Read and Write wait for store I/O, and never for the trimmer, an invalidation or each other, save for a fault on a page
// whose I/O another fault has begun, and for a simulated process's store into their page, which itself waits for store I/O
// only. Without a frame, Read answers from the reply's buffer and Write goes straight to a slot. Commands (Trim…, Flush…) wait for the host and are bounded by their callers.
package mm

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"memfs/mm/pfn"
)

// Config says what a System is made of.
type Config struct {
	Memory       uint64           // bytes; bounds everything the mount costs the host
	MaxMemory    uint64           // bytes; the most that SetMemory may make of it. 0 = Memory
	Size         uint64           // bytes that files may hold; 0 = as much as the commit limit allows
	HostShare    float64          // share of Memory for the host kernel's cached copies; 0 = a third
	Inodes       uint64           // most inodes; 0 = one for each page of Memory
	PageFiles    []PageFileConfig // none = nothing is paged out
	Listener     Listener
	Patience     time.Duration // how long a shrinking memory waits for the next frame; 0 = 20 s
	DirtyBounded bool          // the host bounds what programs have written and it has not sent us
	// Compressed keeps pages in memory compressed before they go to a page file; nil = not.
	Compressed *CompressedConfig
	Encrypt    bool // page files hold nothing that can be read without a key that dies with the System
	// Guarantee is bytes of frames that are had from the host from the start, and kept: New fails if they cannot be.
	Guarantee uint64
	// HostFree is how much memory the host has to give, if that is known; nil = it is not.
	HostFree func() (bytes uint64, known bool)
	Wipe     bool // what frames and slots held is overwritten when they are freed
}

// PageFileConfig is one page file. New takes the store over and closes it at Close.
type PageFileConfig struct {
	Name  string
	Store Store
	Max   uint64 // slots
	Min   uint64 // slots that it has from the start and never gives back to the disk
	// Priority says which page files are written first: those of the highest, in turns if there are several.
	Priority int
}

// Listener is told of events worth a log line. Each func may be nil; none is called with a lock held.
type Listener struct {
	ChecksumError func(file string, slot uint64)
	StoreError    func(file, op string, slot uint64, err error)
	Resized       func(Budget) // SetMemory has divided another memory
}

func (l *Listener) checksumError(file string, slot uint64) {
	if l.ChecksumError != nil {
		l.ChecksumError(file, slot)
	}
}

func (l *Listener) storeError(file, op string, slot uint64, err error) {
	if l.StoreError != nil {
		l.StoreError(file, op, slot, err)
	}
}

func (l *Listener) resized(b Budget) {
	if l.Resized != nil {
		l.Resized(b)
	}
}

// Host reaches the host kernel's mapped views of one file. The manager calls it from its trimmer and from commands only,
// never with a lock held.
type Host interface {
	// WriteBack has the host send what programs have written in [off, off+n); n < 0 means to the end.
	WriteBack(off, n int64) error
	// Invalidate drops the host's copies of the pages in [off, off+n); the next touch is a fault. n < 0 means to the end.
	Invalidate(off, n int64) error
	// Written says whether programs may have written what the host has not sent: the file is open, or mapped, for writing.
	// It waits for nothing.
	Written() bool
}

// System is one memory manager.
type System struct {
	config     Config  // of which Memory and Size are what they were at first
	budget     Budget  // PFN lock
	slotCost   float64 // bytes of records that a slot costs
	listener   Listener
	resizing   chan struct{} // one change of memory at a time
	guaranteed atomic.Uint64 // frames; changes with resizing and book.syncing held
	pfn        *pfn.Database
	rec        *records
	book       recordBook
	files      pageFiles
	commit     commit
	cache      systemCache
	resident   residency
	pressure   pressure
	// compressed is nil if there is none.
	compressed *compression
	combined   combining
	zeroPage   []byte
	n          counters
	tallies    [pfn.Parts]tally

	segMu sync.Mutex
	// +checklocks:segMu
	segs map[uint32]*Segment
	// +checklocks:segMu
	lastSeg uint32
	// +checklocks:segMu
	spaces []*Space
	// +checklocks:segMu
	spaceTurn int // the space that gives pages first when frames are short

	locked uint64 // pages locked in all spaces; PFN lock

	writer   *thread
	trimmer  *thread
	zeroer   *thread
	balancer *thread
	wiper    *thread
	refused  refusals
	stopping atomic.Bool
}

// New makes a System with no threads running: each daemon's work can be done a step at a time (Step…), or by itself after
// Start.
func New(c Config) (*System, error) {
	b, err := Plan(c)
	if err != nil {
		return nil, err
	}
	return NewFromBudget(b, c)
}

// NewFromBudget is New with a division of memory of the caller's own, such as a test's of 16 frames.
func NewFromBudget(b Budget, c Config) (*System, error) {
	var err error
	s := &System{config: c, budget: b, slotCost: c.slotBytes(), listener: c.Listener, segs: make(map[uint32]*Segment)}
	if err = s.reserve(max(b.Memory, c.MaxMemory)); err != nil && c.MaxMemory > b.Memory {
		err = s.reserve(b.Memory) // address space may be short where memory is not
	}
	if err != nil {
		return nil, err
	}
	if err := s.guarantee(); err != nil {
		return nil, err
	}
	if c.Wipe {
		s.pfn.SetWipe()
		if c.Compressed != nil {
			c.Compressed.Store.SetWipe()
		}
	}
	for i, f := range c.PageFiles {
		if _, err := s.openPageFile(i, f); err != nil {
			return nil, err
		}
	}
	s.files.setInUse(s.files.disks())
	if c.Compressed != nil {
		if s.compressed, err = newCompression(compressedNumber, c.Compressed, &s.listener); err != nil {
			return nil, err
		}
		s.files.byNumber[compressedNumber].Store(s.compressed.file)
	}
	s.commit = commit{
		files: &s.files, grown: s.slotsOnDisk(), frames: b.CommitLimit - b.PageFile, size: pagesOf(b.Size), growing: make(chan struct{}, 1),
	}
	s.cache.limit = b.hostPages()
	s.resizing = make(chan struct{}, 1)
	s.resident.setLimit(residentLimit(b.Frames))
	s.cache.turn = make(chan struct{}, 1)
	s.cache.laundry = make(chan struct{}, 1)
	s.zeroPage = alignedPage()
	s.writer = newThread(s.writeLoop)
	s.trimmer = newThread(s.trimLoop)
	s.zeroer = newThread(s.zeroLoop)
	s.balancer = newThread(s.balanceLoop)
	s.wiper = newThread(s.wipeLoop)
	return s, nil
}

// reserve maps frames and records for as much memory as there can ever be. What is not used of it costs address space.
func (s *System) reserve(most uint64) (err error) {
	s.pfn, err = pfn.New(s.budget.Frames, most/(PageSize+pfn.EntrySize), pfn.Owner{
		Restore: s.restore, Moved: s.moved, Freed: func() { s.zeroer.kick() },
	})
	if err != nil {
		return err
	}
	if s.rec, err = newRecords(most / 2); err != nil {
		return errors.Join(err, s.pfn.Close())
	}
	s.config.MaxMemory = most
	return s.newCombining(s.pfn.Most())
}

// Budget is how the memory is divided.
func (s *System) Budget() Budget {
	s.pfn.Lock()
	defer s.pfn.Unlock()
	return s.budget
}

// Start runs the daemons.
func (s *System) Start() {
	for _, t := range s.threads() {
		t.start()
	}
}

func (s *System) threads() []*thread {
	return []*thread{s.balancer, s.trimmer, s.writer, s.zeroer, s.wiper}
}

// Close stops the daemons and gives everything back to the host. Every segment must have been deleted; the error names
// what was leaked otherwise.
func (s *System) Close() error {
	s.stopping.Store(true)
	for _, t := range s.threads() {
		t.stop()
	}
	_ = s.settleCompression()
	combined := s.closeCombining()
	s.syncRecords()
	err := errors.Join(combined, s.leaks())
	for s.wipeStep() > 0 {
	}
	for _, f := range s.files.disks() {
		err = errors.Join(err, f.close())
	}
	if s.compressed != nil {
		err = errors.Join(err, s.compressed.close())
	}
	s.rec.close()
	return errors.Join(err, s.pfn.Close())
}

// leaks says what is still held when nothing should be.
func (s *System) leaks() error {
	snap := s.Snapshot()
	var errs []error
	leak := func(n uint64, what string) {
		if n > 0 {
			errs = append(errs, fmt.Errorf("leaked: %d %s", n, what))
		}
	}
	leak(snap.Sections, "sections")
	leak(snap.Spaces, "address spaces")
	leak(snap.Frames-snap.Zeroed-snap.Free-snap.Bad, "frames")
	leak(snap.Commit, "pages of commit")
	leak(snap.RecordBytes, "bytes of records")
	leak(uint64(s.rec.leaves.Live()), "leaves")
	leak(uint64(s.rec.branches.Live()), "branches")
	for _, f := range snap.PageFiles {
		leak(f.Used, "slots of "+f.Name)
	}
	return errors.Join(errs...)
}

// restore puts the store's location back into the PTE of a page whose frame is taken away (NT: MiRestoreTransitionPte).
// The PFN lock is held.
func (s *System) restore(o, original uint64, why pfn.Departure) {
	l := s.rec.leaves.At(owner(o).leaf())
	if original == 0 {
		s.lose(l, owner(o).index())
		return
	}
	s.rec.set(l, owner(o).index(), pagedPTE(location(original), why))
}

// moved puts another frame into the PTE of a page that was moved there. The PFN lock is held.
func (s *System) moved(o uint64, to pfn.Frame) {
	l, i := s.rec.leaves.At(owner(o).leaf()), owner(o).index()
	if s.rec.word(l, i).kind() == kindValid {
		s.rec.set(l, i, validPTE(to))
	} else {
		s.rec.set(l, i, transitionPTE(to))
	}
}
