package fs

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"memfs/mm"
)

// Notices of low memory and of plenty. Programs wait for them with poll(2), select(2) or epoll(7), as for Windows' memory
// resource notifications. go-fuse answers the host's POLL requests itself, with ENOSYS, and then the host takes every file
// of the mount for ready. So .proc/lowmemory and .proc/highmemory are links to pipes of the daemon's, which the host can
// wait for by itself: a pipe has a line in it for as long as its state lasts. Who may follow the links is who may look into
// the daemon's /proc/PID/fd: root, and the user in whose name it runs.

// noticeStep is how often the state is looked at, which is how late a notice may come.
const noticeStep = 100 * time.Millisecond

// notice is one of them.
type notice struct {
	name  string
	state func(mm.Resource) bool
}

var noticeKinds = [...]notice{{"lowmemory", mm.Resource.Low}, {"highmemory", mm.Resource.High}}

// notices are the pipes of a mount. They are looked after from the time on when somebody first follows a link.
type notices struct {
	mu sync.Mutex
	// +checklocks:mu
	pipes [len(noticeKinds)]pipe
	// +checklocks:mu
	stop chan struct{} // nil: nobody looks after them
	// +checklocks:mu
	closed bool
}

type pipe struct{ reader, writer int }

// link is where the link of a notice leads.
func (n *notices) link(sys *mm.System, kind int) (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.closed:
		return "", unix.ENOTCONN
	case n.stop == nil:
		n.stop = make(chan struct{})
		go n.watch(sys, n.stop)
	}
	n.updateLocked(sys.Resource())
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.pipes[kind].reader), nil
}

// open makes the pipes.
func (n *notices) open() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range n.pipes {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			for _, p := range n.pipes[:i] {
				p.close()
			}
			return err
		}
		n.pipes[i] = pipe{fds[0], fds[1]}
	}
	return nil
}

func (p pipe) close() {
	_ = unix.Close(p.reader)
	_ = unix.Close(p.writer)
}

// watch keeps the pipes in step until stop is closed.
func (n *notices) watch(sys *mm.System, stop chan struct{}) {
	tick := time.NewTicker(noticeStep)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		state := sys.Resource()
		n.mu.Lock()
		if !n.closed {
			n.updateLocked(state)
		}
		n.mu.Unlock()
	}
}

// updateLocked empties the pipes whose state is over, and then puts a line into the others, unless nobody has read the last one:
// whoever is told of one state finds the other one gone. Nothing of it blocks.
// +checklocks:n.mu
func (n *notices) updateLocked(state mm.Resource) {
	for _, begins := range [...]bool{false, true} {
		for i, kind := range noticeKinds {
			p := n.pipes[i]
			unread, err := unix.IoctlGetInt(p.reader, unix.TIOCINQ)
			switch {
			case err != nil || kind.state(state) != begins:
			case begins && unread == 0:
				_, _ = unix.Write(p.writer, []byte(kind.name+"\n"))
			case !begins && unread > 0:
				_, _ = unix.Read(p.reader, make([]byte, unread))
			}
		}
	}
}

// close ends the pipes: whoever waits for one is told that it has hung up.
func (n *notices) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return
	}
	n.closed = true
	if n.stop != nil {
		close(n.stop)
	}
	for _, p := range n.pipes {
		p.close()
	}
}
