package mm

import (
	"fmt"
	"math"
	"time"

	"memfs/mm/offheap"
	"memfs/mm/pfn"
)

// Resized is what a change of memory came to. Figures in pages.
type Resized struct {
	Budget  Budget // now in force
	Added   uint64 // frames
	Retired uint64 // frames
	Trimmed uint64 // left the system cache's working set for it
	Written uint64 // were written to page files for it
}

// refusal is a Status with its particulars.
type refusal struct {
	status Status
	text   string
}

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return r.status }

func refuse(status Status, format string, args ...any) error {
	return &refusal{status, fmt.Sprintf(format, args...)}
}

// SetSize changes how many bytes files may hold, as tmpfs's size= does; 0 is no limit of their own. If they hold more
// than that it is StatusInvalidParameter, as when a tmpfs is remounted, and nothing has changed.
func (s *System) SetSize(bytes uint64) error {
	held, ok := s.commit.setSize(pagesOf(bytes))
	if !ok {
		return refuse(StatusInvalidParameter, "size %s is too small: files hold %s; that or more would do",
			exactly(bytes), exactly(held*PageSize))
	}
	s.pfn.Lock()
	defer s.pfn.Unlock()
	s.budget.Size = bytes
	return nil
}

// exactly prints bytes in binary units, and where that is not exact, as a number: it can be given back to us.
func exactly(n uint64) string {
	unit := -1
	for n != 0 && n%1024 == 0 && unit < len(sizeUnits)-1 {
		n /= 1024
		unit++
	}
	if unit < 0 {
		return fmt.Sprint(n)
	}
	return fmt.Sprint(n, sizeUnits[unit:unit+1])
}

const sizeUnits = "KMGTPE"

// SetMemory changes the memory, with everything that it is divided into, as if mounted with it; files keep every byte.
// Less memory than what is promised needs is StatusInvalidParameter, and nothing has changed; StatusBusy means that
// another change is under way, or that not all frames could be had: the Budget of the result then says what the memory is
// now, and more of it may be had later. It waits for the host and for store I/O: no lock may be held, and no handler of a
// READ or WRITE may call it.
func (s *System) SetMemory(bytes uint64) (Resized, error) {
	if err := s.beginResize(); err != nil {
		return Resized{Budget: s.Budget()}, err
	}
	defer s.endResize()
	now := s.Budget()
	c := s.config
	c.Memory, c.Size = bytes, now.Size
	b, err := s.plan(c)
	if err == nil {
		err = s.checkGuarantee(b)
	}
	if err != nil {
		return Resized{Budget: now}, err
	}
	least := func(frames uint64) Budget {
		had := c
		had.Memory = now.Memory
		return memoryFor(had, func(b Budget) bool { return b.Frames >= frames })
	}
	return s.resize(b, least)
}

// Resize is SetMemory with a division of memory of the caller's own, such as a test's; see NewFromBudget. Its page files
// are what they were.
func (s *System) Resize(b Budget) (Resized, error) {
	if err := s.beginResize(); err != nil {
		return Resized{Budget: s.Budget()}, err
	}
	defer s.endResize()
	return s.resize(b, func(frames uint64) Budget {
		had := b
		had.Frames = frames
		had.CommitLimit += frames - b.Frames
		return had
	})
}

// beginResize makes the caller the one that changes the memory; nobody waits for that.
func (s *System) beginResize() error {
	select {
	case s.resizing <- struct{}{}:
		return nil
	default:
		return refuse(StatusBusy, "another change of the memory is under way: try again")
	}
}

func (s *System) endResize() { <-s.resizing }

// plan is Plan for a memory that is to replace another one: what is promised must fit.
func (s *System) plan(c Config) (Budget, error) {
	if c.Memory > c.MaxMemory {
		return Budget{}, refuse(StatusInvalidParameter, "memory %s is more than the %s that this mount can grow to",
			exactly(c.Memory), size(c.MaxMemory))
	}
	charged, _ := s.commit.total()
	b, err := Plan(c)
	if kept, _ := s.Resident(); err == nil && kept > residentLimit(b.Frames) {
		now := c
		now.Memory = s.Budget().Memory
		least := memoryFor(now, func(b Budget) bool { return residentLimit(b.Frames) >= kept })
		return b, refuse(StatusInvalidParameter, "memory %s is too small: %s are pinned or not to be swapped, "+
			"which may be half of the frames; %s would do", exactly(c.Memory), size(kept*PageSize), exactly(least.Memory))
	}
	if err == nil && charged <= b.CommitLimit {
		return b, nil
	}
	now := c
	now.Memory = s.Budget().Memory
	least := memoryFor(now, func(b Budget) bool { return b.CommitLimit >= charged })
	if err != nil && least.Memory > MinMemory {
		return b, refuse(StatusInvalidParameter, "%v; now %s would do", err, exactly(least.Memory))
	} else if err != nil {
		return b, refuse(StatusInvalidParameter, "%v", err)
	}
	return b, refuse(StatusInvalidParameter, "memory %s is too small: %s is promised, and %s could be; %s would do",
		exactly(c.Memory), size(charged*PageSize), size(b.CommitLimit*PageSize), exactly(least.Memory))
}

// resize brings the memory to b; least is the division that goes with so many frames, should no fewer be had.
// The caller is the one that resizes.
func (s *System) resize(b Budget, least func(frames uint64) Budget) (Resized, error) {
	was := s.Budget()
	r := Resized{Budget: was}
	switch {
	case b.Frames > s.pfn.Most():
		return r, refuse(StatusInvalidParameter, "%d frames are more than the %d there can be", b.Frames, s.pfn.Most())
	case b.Frames >= was.Frames:
		s.enlist(was.Frames+1, b.Frames)
		r.Added = b.Frames - was.Frames
		s.commit.setFrames(b.CommitLimit - b.PageFile)
		return s.adopt(b, r), nil
	case !s.resident.lower(residentLimit(b.Frames)):
		return r, refuse(StatusInvalidParameter, "%d frames are too few: half of them at most may be pinned or not to be swapped",
			b.Frames)
	case !s.promiseLess(b):
		s.resident.setLimit(residentLimit(was.Frames))
		return r, refuse(StatusBusy, "memory %s is too small as long as no page file can grow: its disk is full, or fails",
			exactly(b.Memory))
	}
	s.trimTo(b.hostPages(), &r)
	had := s.shrink(b.Frames, &r)
	if r.Retired = was.Frames - had; had == b.Frames {
		return s.adopt(b, r), nil
	}
	given := least(had)
	if given.Frames > was.Frames {
		given = was
	}
	s.enlist(b.Frames+1, given.Frames)
	s.commit.setFrames(given.CommitLimit - given.PageFile)
	r.Retired = was.Frames - given.Frames
	return s.adopt(given, r), refuse(StatusBusy, "%d frames too many stay in use, for I/O or for want of room in the page "+
		"file: the memory is %s now", had-b.Frames, exactly(given.Memory))
}

// promiseLess lowers the commit limit to that of b, if what is promised can be kept.
func (s *System) promiseLess(b Budget) bool {
	frames := b.CommitLimit - b.PageFile
	if charged, slots := s.commit.total(); charged > frames+slots {
		return false
	}
	return s.commit.setFrames(frames)
}

// adopt makes b the budget in force.
func (s *System) adopt(b Budget, r Resized) Resized {
	s.pfn.Lock()
	b.Size = s.budget.Size // which may have been set meanwhile
	s.budget = b
	s.cache.limit = b.hostPages()
	s.noRoom()
	s.pfn.Unlock()
	s.resident.setLimit(residentLimit(b.Frames))
	s.balancer.kick()
	s.trimmer.kick()
	s.listener.resized(b)
	r.Budget = b
	return r
}

// trimTo trims the system cache's working set to a lower limit. The limit comes down with the pages: far above it every
// request is delayed, those that the trimming itself causes as well. Views that are mapped meanwhile are the trimmer's
// business.
func (s *System) trimTo(limit uint64, r *Resized) {
	s.pfn.Lock()
	views := s.cache.views
	s.pfn.Unlock()
	for done := uint64(0); done < views && s.lowerHostLimit(limit); {
		n, moved, err := s.trimOldest(false)
		if n == 0 || err != nil {
			break
		}
		done += uint64(n)
		r.Trimmed += moved
	}
	s.pfn.Lock()
	s.cache.limit = min(s.cache.limit, limit)
	s.noRoom()
	s.pfn.Unlock()
}

// lowerHostLimit lowers the limit as far as the host's pages already let it, and says whether it is above the one wanted.
func (s *System) lowerHostLimit(limit uint64) bool {
	s.pfn.Lock()
	defer s.pfn.Unlock()
	s.cache.limit = min(s.cache.limit, max(limit, s.hostPages()+s.cache.leaving))
	s.noRoom()
	return s.cache.limit > limit
}

const (
	// resizeBatch is how many frames are looked at, and perhaps copied, in one hold of the PFN lock.
	resizeBatch = 64
	// resizePatience is how long shrinking goes on with no frame retired.
	resizePatience = 20 * time.Second
	// resizePolite is how long it leaves the low mark of frames to programs.
	resizePolite = 100 * time.Millisecond
)

// shrink takes the frames beyond n out of use, as far as that can be done, and returns how many there are now.
func (s *System) shrink(n uint64, r *Resized) (had uint64) {
	s.pfn.Lock()
	s.pfn.SetLimit(n)
	s.pfn.Unlock()
	var walk pfn.Shrinking
	reserve := lowFrames(n)
	patience := s.config.Patience
	if patience == 0 {
		patience = resizePatience
	}
	frames := uint64(math.MaxUint64)
	for last := time.Now(); ; {
		step := s.shrinkStep(&walk, reserve)
		switch since := time.Since(last); {
		case uint64(step.top) == n || s.stopping.Load() || since > patience:
			return uint64(step.top)
		case step.frames < frames:
			frames, last = step.frames, time.Now()
		case since > resizePolite:
			reserve = 0
		}
		if step.short && s.makeRoom(r) {
			continue
		}
		if step.short || step.ended {
			time.Sleep(time.Millisecond) // what is left is pinned or under I/O
		}
	}
}

// makeRoom writes modified pages out, or if there are none, trims: the system cache's working set, else the processes'; false
// if there is nothing to do either.
func (s *System) makeRoom(r *Resized) bool {
	written, _ := s.writeCluster(0) // an error is the listener's; the pages stay
	r.Written += written
	if written > 0 {
		return true
	}
	views, moved, err := s.trimOldest(false)
	r.Trimmed += moved
	if views > 0 && err == nil {
		return true
	}
	for _, p := range s.inTurn() {
		if n := p.trimSome(ViewPages); n > 0 {
			r.Trimmed += n
			return true
		}
	}
	return false
}

// shrinkResult is what one step came to.
type shrinkResult struct {
	top          pfn.Frame // no frame beyond is in use
	frames       uint64    // in use
	ended, short bool      // as of pfn.Shrink
}

func (s *System) shrinkStep(walk *pfn.Shrinking, reserve uint64) (x shrinkResult) {
	const most = 4096 // frames that one system call gives back
	s.book.syncing.Lock()
	defer s.book.syncing.Unlock()
	s.pfn.Lock()
	x.ended, x.short = s.pfn.Shrink(walk, resizeBatch, reserve)
	first, got := s.pfn.Lower(most)
	x.top, x.frames = s.pfn.Top(), s.pfn.Frames()
	s.pfn.Unlock()
	for _, f := range walk.Moved {
		s.lend(f)
	}
	if got > 0 {
		s.pfn.Drop(first, got)
	}
	return x
}

// enlist takes the retired frames first..last into use.
func (s *System) enlist(first, last uint64) {
	const most = 4096
	s.pfn.Lock()
	s.pfn.SetLimit(last)
	s.pfn.Unlock()
	for {
		s.pfn.Lock()
		f, n := s.pfn.NextRetired(pfn.Frame(first), most)
		s.pfn.Unlock()
		if n == 0 {
			return
		}
		// A frame that retired, but could not be let go, still has its last page's bytes.
		if b := s.pfn.Run(f, n); offheap.Drop(b) != nil {
			clear(b)
		}
		s.pfn.Lock()
		s.pfn.Enlist(f, n)
		s.pfn.Unlock()
		first = uint64(f) + uint64(n)
	}
}
