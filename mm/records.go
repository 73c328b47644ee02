package mm

import (
	"errors"
	"sync"

	"memfs/mm/offheap"
	"memfs/mm/pfn"
)

// recordBook keeps the bytes of the manager's own records: leaves, branches, inodes, names. They are part of the budget:
// for every page of them one frame is taken out of use (NT: nonpaged pool) and one page of commit is charged.
type recordBook struct {
	mu sync.Mutex
	// +checklocks:mu
	bytes uint64

	syncing sync.Mutex // one syncRecords at a time; taken before any other lock
	// +checklocks:syncing
	frames []pfn.Frame // taken out of use so far
}

func pagesOf(bytes uint64) uint64 { return (bytes + PageSize - 1) / PageSize }

// chargeRecord adds n bytes of records: errGrow or StatusCommitmentLimit if their commit cannot be had.
func (s *System) chargeRecord(n int) error {
	s.book.mu.Lock()
	defer s.book.mu.Unlock()
	pages := pagesOf(s.book.bytes+uint64(n)) - pagesOf(s.book.bytes)
	if pages > 0 {
		if err := s.commit.tryCharge(pages); err != nil {
			return err
		}
		s.commit.attach(pages)
		s.balancer.kick()
	}
	s.book.bytes += uint64(n)
	return nil
}

// ChargeRecord adds n bytes of records that the caller keeps on the Go heap, such as an inode and its name.
// StatusCommitmentLimit if the budget has no room. It may do I/O: no lock may be held.
func (s *System) ChargeRecord(n int) error {
	for {
		err := s.chargeRecord(n)
		if !errors.Is(err, errGrow) {
			return err
		}
		if err := s.commit.grow(1); err != nil {
			return err
		}
	}
}

// ReleaseRecord takes n bytes of records away again.
func (s *System) ReleaseRecord(n int) {
	s.book.mu.Lock()
	defer s.book.mu.Unlock()
	pages := pagesOf(s.book.bytes) - pagesOf(s.book.bytes-uint64(n))
	s.book.bytes -= uint64(n)
	if pages > 0 {
		s.commit.uncharge(pages, true)
		s.balancer.kick()
	}
}

func (s *System) recordBytes() uint64 {
	s.book.mu.Lock()
	defer s.book.mu.Unlock()
	return s.book.bytes
}

// slotRecordBytes is what the page files' books take at their present size.
func (s *System) slotRecordBytes() uint64 {
	var n float64
	for _, f := range s.disks {
		n += float64(f.info().Size) * s.slotCost
	}
	if s.compressed != nil {
		n += float64(s.compressed.file.info().Size) * compressedSlotBytes
	}
	return uint64(n)
}

// syncRecords makes the number of record frames match the bytes of records. Where no frame is to be had it stops; the
// balancer comes back to it.
func (s *System) syncRecords() {
	b := &s.book
	b.syncing.Lock()
	defer b.syncing.Unlock()
	want := pagesOf(s.recordBytes() + s.slotRecordBytes())
	if s.stopping.Load() {
		want = 0
	}
	for uint64(len(b.frames)) < want {
		s.pfn.Lock()
		f := s.pfn.TakeRecord()
		s.pfn.Unlock()
		if f == 0 {
			s.writer.kick()
			return
		}
		_ = offheap.Drop(s.pfn.Bytes(f))
		b.frames = append(b.frames, f)
	}
	for uint64(len(b.frames)) > want {
		last := len(b.frames) - 1
		s.pfn.Lock()
		s.pfn.GiveRecord(b.frames[last])
		s.pfn.Unlock()
		b.frames = b.frames[:last]
	}
}
