package mm

import (
	"math"
	"math/bits"
	"unsafe"

	"memfs/mm/offheap"
)

const (
	// PageShift is log2 of PageSize.
	PageShift = 12
	// PageSize is the unit of protection and paging in bytes.
	PageSize = 1 << PageShift
	// ViewPages is the number of pages that one view of the system cache maps: 256 KiB, as in NT.
	ViewPages = 64
	viewShift = 6

	// MaxSize is the size limit of a section: off_t's largest value, 8 EiB − 1.
	MaxSize = 1<<63 - 1
)

// leaf is the record of 64 consecutive pages of a segment: their prototype PTEs, and the view of the system cache over
// them. It lies outside the Go heap and is named by number. Words are held in an array that grows with what the pages
// need (4, 16 or 64), so that a small file costs little.
//
// A leaf outlives its frames: it goes when no word and no host page is left in it, and it is not being trimmed.
type leaf struct {
	base uint64 // first page, a multiple of 64; immutable
	host uint64 // one bit a page: the host kernel may hold a copy (private: the page is locked); PFN lock
	seg  uint32 // its segment; immutable
	next uint32 // first-in-first-out queue of mapped views (private: half of the reset bits); PFN lock
	prev uint32
	// words names the array in the slab of its class. Changes with the segment's lock and the PFN lock held.
	words uint32
	class uint8  // 0 = no words yet
	live  uint8  // words that are not zero
	flags uint8  // PFN lock
	stamp uint32 // of a view on the queue: the higher, the later it was mapped; PFN lock
	left  uint32 // records.left when one of its pages last came to have no frame of its own; PFN lock
}

const (
	leafMapped   = 1 << iota // on the queue
	leafTrimming             // off the queue, the trimmer has it
	leafCombined             // of the combined pages' segment; immutable
	leafPrivate              // of a process's private memory, which no view maps (space.go); immutable
	leafLimited              // of a file with a working-set limit, and counted there (filelimit.go)
)

// classWords is how many words a class has.
var classWords = [...]uint{0, 4, 16, 64}

type (
	words4  [4]pte
	words16 [16]pte
	words64 [64]pte
)

// branchWidth is the fan-out of the radix tree over leaves.
const (
	branchShift = 6
	branchWidth = 1 << branchShift
)

// branch is an inner node of a segment's radix tree: numbers of branches, or of leaves at the lowest level.
type branch struct {
	slots [branchWidth]uint32
	used  uint32
}

// The bytes that records cost, as charged.
const (
	leafBytes   = int(unsafe.Sizeof(leaf{}))
	branchBytes = int(unsafe.Sizeof(branch{}))
)

// records are the slabs that segments are made of.
type records struct {
	leaves   *offheap.Slab[leaf]
	branches *offheap.Slab[branch]
	w4       *offheap.Slab[words4]
	w16      *offheap.Slab[words16]
	w64      *offheap.Slab[words64]

	workingSets map[uint32]*workingSet // of private segments; PFN lock
	left        uint32                 // how often a page came to have no frame of its own; PFN lock
	limits      map[uint32]*fileLimit  // of files that have one; PFN lock
}

// newRecords makes slabs that together can grow to a little over limit bytes each; the record charge is what bounds
// them in truth.
func newRecords(limit uint64) (*records, error) {
	n := func(size uintptr) uint32 { return uint32(min(max(limit/uint64(size), 1024), math.MaxUint32-1)) }
	r := &records{workingSets: make(map[uint32]*workingSet), limits: make(map[uint32]*fileLimit)}
	var err error
	if r.leaves, err = offheap.NewSlab[leaf](n(unsafe.Sizeof(leaf{}))); err != nil {
		return nil, err
	}
	if r.branches, err = offheap.NewSlab[branch](n(unsafe.Sizeof(branch{}))); err != nil {
		return nil, err
	}
	if r.w4, err = offheap.NewSlab[words4](n(unsafe.Sizeof(words4{}))); err != nil {
		return nil, err
	}
	if r.w16, err = offheap.NewSlab[words16](n(unsafe.Sizeof(words16{}))); err != nil {
		return nil, err
	}
	if r.w64, err = offheap.NewSlab[words64](n(unsafe.Sizeof(words64{}))); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *records) close() {
	for _, c := range []interface{ Close() error }{r.leaves, r.branches, r.w4, r.w16, r.w64} {
		if c != nil {
			_ = c.Close()
		}
	}
}

// slice returns the words of l.
func (r *records) slice(l *leaf) []pte {
	switch l.class {
	case 1:
		return r.w4.At(l.words)[:]
	case 2:
		return r.w16.At(l.words)[:]
	case 3:
		return r.w64.At(l.words)[:]
	}
	return nil
}

// word returns the PTE of page i of l. Preconditions: the PFN lock is held.
func (r *records) word(l *leaf, i uint) pte {
	if w := r.slice(l); i < uint(len(w)) {
		return w[i]
	}
	return 0
}

// set changes the PTE of page i of l, which has room for it. Preconditions: the PFN lock is held.
func (r *records) set(l *leaf, i uint, w pte) {
	p := &r.slice(l)[i]
	switch {
	case *p == 0 && w != 0:
		l.live++
	case *p != 0 && w == 0:
		l.live--
	}
	if l.flags&(leafPrivate|leafLimited) != 0 {
		r.count(l, *p, w)
	}
	if w.leaves(*p) {
		r.left++
		l.left = r.left
	}
	*p = w
}

// classFor is the smallest class that holds page i.
func classFor(i uint) uint8 {
	for c, n := range classWords {
		if i < n {
			return uint8(c)
		}
	}
	panic("mm: page index outside its view")
}

func (r *records) allocWords(class uint8) (uint32, error) {
	switch class {
	case 1:
		return r.w4.Alloc()
	case 2:
		return r.w16.Alloc()
	default:
		return r.w64.Alloc()
	}
}

func (r *records) freeWords(class uint8, n uint32) {
	switch class {
	case 1:
		r.w4.Free(n)
	case 2:
		r.w16.Free(n)
	case 3:
		r.w64.Free(n)
	}
}

// leafCost is what a leaf of the class costs in bytes.
func leafCost(class uint8) int { return leafBytes + int(classWords[class])*8 }

// pageMask is the bits of pages lo..hi of a view.
func pageMask(lo, hi uint) uint64 {
	return ^uint64(0) << lo & (^uint64(0) >> (63 - hi))
}

// lowestBit takes the lowest set bit off m.
func lowestBit(m *uint64) uint {
	i := uint(bits.TrailingZeros64(*m))
	*m &= *m - 1
	return i
}

// --- the radix tree of a segment -------------------------------------------------------------------------------------
//
// Keys are view numbers (page >> 6). A tree of height h holds keys below 64^h; height 0 is a single leaf for key 0.
// Structure changes only under the segment's lock.

// covers reports whether a tree of height h has room for key.
func covers(h uint8, key uint64) bool { return h*branchShift >= 64 || key>>(h*branchShift) == 0 }

// leafAt returns the number of the leaf for key, 0 if there is none.
// +checklocks:g.mu
func (g *Segment) leafAt(key uint64) uint32 {
	if !covers(g.height, key) {
		return 0
	}
	n := g.root
	for h := g.height; h > 0 && n != 0; h-- {
		n = g.sys.rec.branches.At(n).slots[key>>((h-1)*branchShift)%branchWidth]
	}
	return n
}

// makeLeaf returns the leaf for key, made if need be, with room for the words up to page upTo−1 of the view
// (0 = no words needed). errGrow or StatusCommitmentLimit if the records cannot be had; then nothing has changed that
// matters.
// +checklocks:g.mu
func (g *Segment) makeLeaf(key uint64, upTo uint) (uint32, error) {
	id := g.leafAt(key)
	if id == 0 {
		var err error
		if id, err = g.insertLeaf(key); err != nil {
			return 0, err
		}
	}
	if upTo == 0 {
		return id, nil
	}
	return id, g.growLeaf(id, classFor(upTo-1))
}

// +checklocks:g.mu
func (g *Segment) growLeaf(id uint32, class uint8) error {
	r := g.sys.rec
	l := r.leaves.At(id)
	if l.class >= class {
		return nil
	}
	if err := g.sys.chargeRecord(leafCost(class) - leafCost(l.class)); err != nil {
		return err
	}
	n, err := r.allocWords(class)
	if err != nil {
		g.sys.ReleaseRecord(leafCost(class) - leafCost(l.class))
		return StatusCommitmentLimit
	}
	oldClass, oldWords := l.class, l.words
	g.sys.pfn.Lock()
	old := r.slice(l)
	grown := leaf{class: class, words: n}
	copy(r.slice(&grown), old)
	l.class, l.words = class, n
	g.sys.pfn.Unlock()
	r.freeWords(oldClass, oldWords)
	return nil
}

// +checklocks:g.mu
func (g *Segment) insertLeaf(key uint64) (uint32, error) {
	r := g.sys.rec
	// Taller until the key fits.
	for !covers(g.height, key) {
		if g.root != 0 {
			b, err := g.newBranch()
			if err != nil {
				return 0, err
			}
			n := r.branches.At(b)
			n.slots[0], n.used = g.root, 1
			g.root = b
		}
		g.height++
	}
	// Walk down, making branches on the way.
	p, owner := &g.root, (*branch)(nil)
	for h := g.height; h > 0; h-- {
		if *p == 0 {
			b, err := g.newBranch()
			if err != nil {
				g.prune(key)
				return 0, err
			}
			*p = b
			if owner != nil {
				owner.used++
			}
		}
		owner = r.branches.At(*p)
		p = &owner.slots[key>>((h-1)*branchShift)%branchWidth]
	}
	if err := g.sys.chargeRecord(leafBytes); err != nil {
		g.prune(key)
		return 0, err
	}
	id, err := r.leaves.Alloc()
	if err != nil {
		g.sys.ReleaseRecord(leafBytes)
		g.prune(key)
		return 0, StatusCommitmentLimit
	}
	*p = id
	if owner != nil {
		owner.used++
	}
	g.sys.pfn.Lock()
	l := r.leaves.At(id)
	l.base, l.seg = key<<viewShift, g.id
	if g.private {
		l.flags = leafPrivate
	}
	if g.combined {
		l.flags = leafCombined
	}
	if g.limited {
		l.flags |= leafLimited
	}
	g.sys.pfn.Unlock()
	g.leaves++
	return id, nil
}

// +checklocks:g.mu
func (g *Segment) newBranch() (uint32, error) {
	if err := g.sys.chargeRecord(branchBytes); err != nil {
		return 0, err
	}
	b, err := g.sys.rec.branches.Alloc()
	if err != nil {
		g.sys.ReleaseRecord(branchBytes)
		return 0, StatusCommitmentLimit
	}
	return b, nil
}

// dropLeafIfEmpty removes the leaf for key if nothing is left in it.
// +checklocks:g.mu
func (g *Segment) dropLeafIfEmpty(key uint64) {
	id := g.leafAt(key)
	if id == 0 {
		return
	}
	r := g.sys.rec
	l := r.leaves.At(id)
	g.sys.pfn.Lock()
	empty := l.live == 0 && l.host == 0 && l.flags&(leafMapped|leafTrimming) == 0
	class, words := l.class, l.words
	if empty {
		l.seg = 0
	}
	g.sys.pfn.Unlock()
	if !empty {
		return
	}
	g.prune(key)
	r.freeWords(class, words)
	g.sys.pfn.Lock()
	r.leaves.Free(id)
	g.sys.pfn.Unlock()
	g.sys.ReleaseRecord(leafCost(class))
	g.leaves--
}

// prune takes what is at key, a leaf or the branches that a failed insertion left empty, out of the tree.
// Preconditions: the tree covers key.
// +checklocks:g.mu
func (g *Segment) prune(key uint64) {
	if g.root = g.unlink(g.root, g.height, key); g.root == 0 {
		g.height = 0
	}
}

// unlink takes the leaf for key out of the subtree n of height h, and returns the subtree that is left: 0 if nothing is.
// +checklocks:g.mu
func (g *Segment) unlink(n uint32, h uint8, key uint64) uint32 {
	if h == 0 || n == 0 {
		return 0
	}
	b := g.sys.rec.branches.At(n)
	i := key >> ((h - 1) * branchShift) % branchWidth
	if b.slots[i] != 0 {
		if b.slots[i] = g.unlink(b.slots[i], h-1, key); b.slots[i] == 0 {
			b.used--
		}
	}
	if b.used > 0 {
		return n
	}
	g.sys.rec.branches.Free(n)
	g.sys.ReleaseRecord(branchBytes)
	return 0
}

// nextLeaf returns the first leaf at or after key, and its key; 0 if there is none.
// +checklocks:g.mu
func (g *Segment) nextLeaf(key uint64) (uint64, uint32) {
	if !covers(g.height, key) {
		return 0, 0
	}
	return g.seek(g.root, g.height, key)
}

// seek finds the first leaf at or after key in the subtree n of height h; key is relative to the subtree.
// +checklocks:g.mu
func (g *Segment) seek(n uint32, h uint8, key uint64) (uint64, uint32) {
	if n == 0 || h == 0 {
		return key, n
	}
	shift := (h - 1) * branchShift
	b := g.sys.rec.branches.At(n)
	first := key >> shift
	for i := first; i < branchWidth; i++ {
		if b.slots[i] == 0 {
			continue
		}
		rel := uint64(0)
		if i == first {
			rel = key & (1<<shift - 1)
		}
		if k, id := g.seek(b.slots[i], h-1, rel); id != 0 {
			return i<<shift | k, id
		}
	}
	return 0, 0
}

// eachView calls f for every view with records that holds pages of first..last, with their places in it as a mask, under the
// segment's lock and the PFN lock.
func (g *Segment) eachView(first, last uint64, f func(l *leaf, mask uint64)) {
	s := g.sys
	for key := first >> viewShift; ; key++ {
		g.mu.Lock()
		k, id := g.nextLeaf(key)
		if id == 0 || k > last>>viewShift {
			g.mu.Unlock()
			return
		}
		s.pfn.Lock()
		f(s.rec.leaves.At(id), pageMask(within(k, first, last)))
		s.pfn.Unlock()
		g.mu.Unlock()
		key = k
	}
}
