// Package mapping holds section objects: what a regular file of the mount is (Windows Internals 7 ch. 5, "Section
// objects"). A section has a size in bytes and a segment, whose prototype PTEs say where each page is; all who map or read
// the section share those.
//
// A section has no lock of its own: its size is one atomic word, and its pages are guarded by the segment (see package
// mm). The host kernel orders a truncation and a write of the same bytes by its inode lock; each of them is safe, whatever
// the order.
package mapping

import (
	"sync/atomic"

	"memfs/mm"
)

// Section is a section object. Its methods may be called at once from several goroutines. Errors are of type mm.Status.
type Section struct {
	seg  *mm.Segment
	host mm.Host

	size atomic.Int64 // bytes
}

// NewSection makes an empty section of a file that the host reaches through host.
func NewSection(sys *mm.System, host mm.Host) *Section {
	return &Section{seg: sys.NewSegment(host), host: host}
}

// Segment has the section's pages: what views of simulated processes show.
func (s *Section) Segment() *mm.Segment { return s.seg }

// Size is the size in bytes, as far as the host has told us: what programs have appended and the host still keeps to
// itself is not in it.
func (s *Section) Size() int64 { return s.size.Load() }

// extend makes the size at least end.
func (s *Section) extend(end int64) {
	for old := s.size.Load(); old < end && !s.size.CompareAndSwap(old, end); old = s.size.Load() {
	}
}

// Blocks is the space that the section has been promised, in units of 512 bytes as st_blocks counts.
func (s *Section) Blocks() uint64 { return s.seg.Pages() * (mm.PageSize / 512) }

// Read returns the bytes [off, off+n), clipped to the size, as slices of pinned frames; the caller calls Done when the
// reply is sent. reply is the reply's buffer, used where no frame is left. nil if nothing is left after clipping.
//
// The host keeps zeros for what lies beyond the size, so those pages enter the system cache's working set too.
func (s *Section) Read(off int64, n int, reply []byte) (*mm.ReadSet, error) {
	return s.read(off, n, reply, s.seg.Read)
}

// ReadPast is Read for a READ that goes past the host's cache.
func (s *Section) ReadPast(off int64, n int, reply []byte) (*mm.ReadSet, error) {
	return s.read(off, n, reply, s.seg.ReadPast)
}

func (s *Section) read(off int64, n int, reply []byte, read func(int64, int, []byte) (*mm.ReadSet, error)) (*mm.ReadSet, error) {
	if off < 0 || n < 0 {
		return nil, mm.StatusInvalidParameter
	}
	if n = int(min(int64(n), mm.MaxSize-off)); n == 0 {
		return nil, nil
	}
	set, err := read(off, n, reply)
	if err != nil {
		return nil, err
	}
	left := max(0, s.Size()-off)
	if left == 0 {
		set.Done()
		return nil, nil
	}
	set.Clip(int(min(int64(n), left)))
	return set, nil
}

// Write stores data at off and extends the size if need be, all of it or nothing. StatusCommitmentLimit: no space.
func (s *Section) Write(off int64, data []byte) error {
	end := off + int64(len(data))
	if off < 0 {
		return mm.StatusInvalidParameter
	}
	if end < off {
		return mm.StatusFileTooLarge
	}
	if err := s.seg.Write(off, data); err != nil {
		return err
	}
	s.extend(end)
	return nil
}

// Truncate sets the size. Pages beyond it go back at once; bytes of the last page beyond it become zeros.
func (s *Section) Truncate(size int64) error {
	if size < 0 {
		return mm.StatusInvalidParameter
	}
	if size < s.Size() {
		if err := s.zeroTail(size); err != nil {
			return err
		}
	}
	s.size.Store(size)
	first := uint64(size+mm.PageSize-1) >> mm.PageShift
	if size > mm.MaxSize-mm.PageSize {
		first = uint64(size)>>mm.PageShift + 1
	}
	s.seg.Punch(first, lastPage)
	return nil
}

// lastPage is the number of the last page that a section can have.
const lastPage = uint64(mm.MaxSize) >> mm.PageShift

// zeroTail clears the bytes of the page that holds offset at from there on.
func (s *Section) zeroTail(at int64) error {
	if at%mm.PageSize == 0 {
		return nil
	}
	end := at | (mm.PageSize - 1)
	return s.zero(at, end-at+1)
}

// zero clears bytes within one page, if the page was ever written.
func (s *Section) zero(off, n int64) error {
	page := uint64(off) >> mm.PageShift
	if at, ok := s.seg.SeekData(page); !ok || at != page {
		return nil
	}
	return s.seg.Write(off, zeros[:n])
}

var zeros [mm.PageSize]byte

// Allocate promises space for [off, off+n), as fallocate(2) does. The size grows to off+n unless keepSize.
func (s *Section) Allocate(off, n int64, keepSize bool) error {
	end := off + n
	if off < 0 || n <= 0 {
		return mm.StatusInvalidParameter
	}
	if end < off {
		return mm.StatusFileTooLarge
	}
	if err := s.seg.Commit(uint64(off)>>mm.PageShift, uint64(end-1)>>mm.PageShift); err != nil {
		return err
	}
	if !keepSize {
		s.extend(end)
	}
	return nil
}

// Punch makes [off, off+n) zeros: whole pages become holes, their space goes back at once. The size stays.
func (s *Section) Punch(off, n int64) error {
	end := off + n
	if off < 0 || n <= 0 {
		return mm.StatusInvalidParameter
	}
	if end < off {
		end = mm.MaxSize
	}
	first, last := (uint64(off)+mm.PageSize-1)>>mm.PageShift, uint64(end)>>mm.PageShift // whole pages [first, last)
	if first > last {
		return s.zero(off, n)
	}
	if head := int64(first)<<mm.PageShift - off; head > 0 {
		if err := s.zero(off, head); err != nil {
			return err
		}
	}
	if tail := end - int64(last)<<mm.PageShift; tail > 0 {
		if err := s.zero(end-tail, tail); err != nil {
			return err
		}
	}
	if first < last {
		s.seg.Punch(first, last-1)
	}
	return nil
}

// Discard makes [off, off+n) zeros, in the host's copies as well. What programs are writing there at the same time may be
// lost or not. It waits for the host: no handler of a READ or WRITE may call it.
func (s *Section) Discard(off, n int64) error {
	if off < 0 || n <= 0 {
		return mm.StatusInvalidParameter
	}
	if err := s.host.Invalidate(off, n); err != nil {
		return err
	}
	if err := s.Punch(off, n); err != nil {
		return err
	}
	return s.host.Invalidate(off, n)
}

// SeekData returns the first offset at or after off with data, as lseek(2) SEEK_DATA. StatusNoData if there is none.
func (s *Section) SeekData(off int64) (int64, error) {
	size := s.Size()
	if off < 0 || off >= size {
		return 0, mm.StatusNoData
	}
	page, ok := s.seg.SeekData(uint64(off) >> mm.PageShift)
	if at := int64(page) << mm.PageShift; ok && at < size {
		return max(at, off), nil
	}
	return 0, mm.StatusNoData
}

// SeekHole returns the first offset at or after off in a hole, as lseek(2) SEEK_HOLE; the end of the file is one.
func (s *Section) SeekHole(off int64) (int64, error) {
	size := s.Size()
	if off < 0 || off >= size {
		return 0, mm.StatusNoData
	}
	at := int64(s.seg.SeekHole(uint64(off)>>mm.PageShift)) << mm.PageShift
	return min(max(at, off), size), nil
}

// Forgotten notes that the host has dropped the file from its memory, pages and all.
func (s *Section) Forgotten() { s.seg.Forgotten() }

// Delete gives back frames, slots and commit at once. Later calls fail with StatusDeleted.
func (s *Section) Delete() { s.seg.Delete() }

// Info says where a section's pages are, in pages.
type Info struct {
	Size       uint64 // bytes
	Committed  uint64
	Active     uint64
	Standby    uint64
	Modified   uint64
	Transition uint64 // under I/O
	Paged      uint64 // in a page file only
	Compressed uint64 // in compressed memory only
	Combined   uint64 // of all these, those that share their bytes with other pages
	HostCached uint64 // the host kernel may hold a copy
}

// Info counts the section's pages by state. It walks the section's records.
func (s *Section) Info() Info {
	i := Info{Size: uint64(s.Size()), Committed: s.seg.Pages()}
	s.EachPage(0, lastPage+1, func(p mm.PageInfo) bool {
		switch p.State {
		case mm.StateActive:
			i.Active++
		case mm.StateStandby:
			i.Standby++
		case mm.StateModified, mm.StateNoWrite:
			i.Modified++
		case mm.StateTransition:
			i.Transition++
		case mm.StatePaged:
			i.Paged++
		case mm.StateCompressed:
			i.Compressed++
		}
		if p.Host {
			i.HostCached++
		}
		if p.Sharers > 0 {
			i.Combined++
		}
		return true
	})
	return i
}

// EachPage calls f for the pages among the n from first on that exist or that the host holds, in order, until f returns
// false.
func (s *Section) EachPage(first, n uint64, f func(mm.PageInfo) bool) { s.seg.Each(first, n, f) }

// Trim has the host drop every page; the next touch is a fault. It returns the pages that left the working set.
func (s *Section) Trim() (uint64, error) { return s.seg.Trim() }

// Flush has the host send what programs wrote, and writes the section's Modified pages to their page file. It returns how
// many.
func (s *Section) Flush() (uint64, error) {
	if err := s.host.WriteBack(0, -1); err != nil {
		return 0, err
	}
	return s.seg.Flush()
}

// Prefetch brings the paged pages of [off, off+n) back into frames. It returns how many.
func (s *Section) Prefetch(off, n int64) (uint64, error) {
	size := s.Size()
	if off < 0 || n <= 0 || off >= size {
		return 0, nil
	}
	n = min(n, size-off)
	return s.seg.Prefetch(uint64(off)>>mm.PageShift, uint64(off+n-1)>>mm.PageShift)
}

// Rule is how the section's pages are treated.
func (s *Section) Rule() mm.Rule { return s.seg.Rule() }

// SetRule changes that, and has the pages that there are follow. It returns how many had to be read back for it. The
// errors are mm.Segment.SetRule's.
func (s *Section) SetRule(r mm.Rule) (read uint64, err error) { return s.seg.SetRule(r) }

// Bound has what is too much by the rule's working-set limit leave memory at once. The errors are mm.Segment.Bound's.
func (s *Section) Bound() (trimmed, evicted uint64, err error) { return s.seg.Bound() }

// Faults is how often the section's pages faulted.
func (s *Section) Faults() mm.FaultCounts { return s.seg.Faults() }

// Holdings counts the section's pages by where they are, faster than Info.
func (s *Section) Holdings() mm.Holdings { return s.seg.Holdings() }

// Offer has pages that are in frames be lost when their frames are wanted: those that lie in [off, off+n) as a whole, or end
// with the file; n < 0 is to the end. The errors are mm.Segment.Offer's.
func (s *Section) Offer(off, n int64, priority uint8) (uint64, error) {
	end := off + n
	if n < 0 || end >= s.Size() {
		end = mm.MaxSize
	}
	first, last := uint64(off+mm.PageSize-1)>>mm.PageShift, uint64(end)>>mm.PageShift
	if last <= first {
		return 0, nil
	}
	return s.seg.Offer(first, last-1, priority)
}

// Reclaim takes Offer of the pages that [off, off+n) touches back.
func (s *Section) Reclaim(off, n int64) mm.Offered {
	end := off + n
	if n < 0 {
		end = mm.MaxSize
	}
	if end <= off {
		return mm.Offered{}
	}
	return s.seg.Reclaim(uint64(off)>>mm.PageShift, uint64(end-1)>>mm.PageShift)
}
