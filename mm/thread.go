package mm

import "sync"

// thread is one of the manager's daemons: a loop that sleeps until it is kicked or its own timer runs out.
type thread struct {
	loop func(t *thread)
	wake chan struct{} // one kick is remembered
	quit chan struct{}
	done sync.WaitGroup
	once sync.Once
}

func newThread(loop func(t *thread)) *thread {
	return &thread{loop: loop, wake: make(chan struct{}, 1), quit: make(chan struct{})}
}

func (t *thread) start() { t.done.Go(func() { t.loop(t) }) }

// kick wakes the thread; it never blocks.
func (t *thread) kick() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// stop ends the thread and waits for it. It may be called without start.
func (t *thread) stop() {
	t.once.Do(func() { close(t.quit) })
	t.done.Wait()
}

func (t *thread) stopped() bool {
	select {
	case <-t.quit:
		return true
	default:
		return false
	}
}
